/** Whether the graph on the canvas will fit, before it runs, and buttons that make it. */
import { button, make, say } from "../dom.js";
import { nodeOf } from "../nodes.js";

const CARDS_GIB = [4, 6, 8, 10, 12, 16, 24, 32, 48, 80];

export class Fit {
  /** `post(graph, cardMib, changes)` asks the server and gives {answer}, {why} or {key}; `onPick(nodeId)` when a node is clicked; `onAnswer(answer)` with each answer, and null. */
  constructor(app, words, post, onPick, onAnswer) {
    Object.assign(this, { app, words, post, onPick, onAnswer });
    this.seen = null;
    this.number = 0;
    this.element = make("div", "lv-fit");
    const line = make("label", "lv-line", this.element, words.text("card"));
    this.card = make("select", "lv-select", line);
    this.card.dataset.testid = "lean-video-card";
    for (const [value, text] of [["", words.text("cardHere")], ...CARDS_GIB.map((size) => [size, words.text("cardOf", { size: `${size} GiB` })])]) {
      Object.assign(make("option", "", this.card, text), { value });
    }
    this.card.addEventListener("change", () => void this.look(true));
    this.verdict = make("div", "lv-verdict", this.element);
    this.verdict.setAttribute("role", "status");
    this.note = make("p", "lv-quiet", this.element);
    this.rows = make("div", "lv-rows", this.element);
    this.looking = make("p", "lv-quiet", this.element);
    this.looking.hidden = true;
    this.say("checking");
  }

  /** Asks anew when the graph is another than at the last look. */
  async look(always = false) {
    let drawn;
    try {
      drawn = signatureOf(this.app.graph);
    } catch {
      return; // the page is just loading another one
    }
    if (drawn === this.seen && !always) return;
    this.seen = drawn;
    const number = ++this.number; // an answer that comes after a later question is of no use
    let graph;
    try {
      graph = (await this.app.graphToPrompt()).output;
    } catch (error) {
      return this.take(number, { why: error?.message ?? String(error) });
    }
    if (!Object.keys(graph).length) return this.take(number, { key: "emptyGraph" });
    const card = this.card.value ? Number(this.card.value) * 1024 : null;
    const waiting = setTimeout(() => number === this.number && this.say("checking"), 400);
    const result = await this.post(graph, card, false);
    clearTimeout(waiting);
    this.take(number, result);
    // What would fit takes seconds to find: the verdict need not wait for it.
    if (number !== this.number || !result.answer?.nodes.some((node) => node.fits === false && !node.changes.length)) return;
    say(this.looking, this.words.text("looking"));
    void this.post(graph, card, true).then((found) => this.take(number, found));
  }

  take(number, result) {
    if (number !== this.number) return;
    say(this.looking, "");
    this.answer = result.answer ?? null;
    this.onAnswer(this.answer);
    if (this.answer) this.show(this.answer);
    else this.say(result.key ?? "unreadable", result);
  }

  say(key, values = {}) {
    this.state("", this.words.text(key, values));
    this.rows.replaceChildren();
    say(this.note, "");
  }

  state(kind, text) {
    this.verdict.className = `lv-verdict ${kind}`;
    say(this.verdict, text);
  }

  show(answer) {
    const { words } = this;
    const sizes = { peak: words.size(answer.peak ?? 0), free: words.size(answer.device.free) };
    const known = answer.nodes.filter((node) => node.source === "planned" || node.source === "measured");
    if (answer.fits === false) this.state("lv-no", words.text("fitsNot", sizes));
    else if (answer.fits) this.state("lv-yes", words.text("fits", sizes));
    else if (known.length) this.state("lv-yes lv-partly", words.text("fitsSoFar", sizes));
    else this.state("", words.text("fitsUnknown", { count: answer.unknown }));
    const unknown = answer.nodes.filter((node) => node.source === "unknown");
    say(this.note, known.length && unknown.length ? words.text("unknownNodes", { count: unknown.length }) : "");
    this.note.title = unknown.map((node) => `${node.title}: ${node.why}`).join("\n");
    const scale = Math.max(answer.device.free, answer.peak ?? 0, 1);
    this.rows.replaceChildren(...known.filter((node) => node.peak > 0 || node.why).map((node) => this.row(node, answer.device.free, scale)));
  }

  row(node, free, scale) {
    const { words } = this;
    const element = make("div", "lv-device");
    element.dataset.node = node.id;
    const head = make("div", "lv-head", element);
    button(node.title, "lv-node lv-name", head, () => this.onPick(node.id));
    make("span", "lv-amount", head, words.size(node.peak)).title = words.text(node.source);
    const bar = make("div", "lv-bar", element);
    make("span", "lv-own", bar).style.width = `${(100 * node.peak) / scale}%`;
    make("span", "lv-limit", bar).style.left = `${(100 * free) / scale}%`;
    element.classList.toggle("lv-over", node.fits === false);
    if (node.why) make("div", "lv-quiet", element, node.why);
    if (node.fits === false && node.changes.length) {
      const line = make("div", "lv-fixes", element);
      for (const change of node.changes) button(change.text, "lv-button lv-fix", line, () => void this.apply(change));
    }
    return element;
  }

  /** Sets the inputs that a change names, as if typed, and looks again. */
  async apply(change) {
    for (const { node: id, input, value } of change.set) {
      const node = nodeOf(this.app, id);
      const widget = node?.widgets?.find((one) => one.name === input);
      if (!widget) continue;
      widget.value = value;
      widget.callback?.(value, this.app.canvas, node);
      node.graph?.change?.();
    }
    this.app.graph.setDirtyCanvas?.(true, true);
    this.app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // so that it can be undone
    await this.look(true);
  }
}

/** Changes when the graph does in a way that counts: values, connections and modes, not places. */
function signatureOf(graph) {
  const parts = [];
  const walk = (one) => {
    for (const node of one._nodes ?? one.nodes ?? []) {
      parts.push(node.id, node.type, node.mode, (node.widgets ?? []).map((widget) => short(widget.value)), (node.inputs ?? []).map((input) => input.link));
      if (node.subgraph) walk(node.subgraph);
    }
    for (const link of links(one)) parts.push(link.origin_id, link.origin_slot, link.target_id, link.target_slot);
  };
  walk(graph);
  return JSON.stringify(parts);
}

function links(graph) {
  const all = graph.links;
  return (typeof all?.values === "function" ? [...all.values()] : Object.values(all ?? {})).filter(Boolean);
}

function short(value) {
  return typeof value === "string" ? value.slice(0, 200) : typeof value === "object" ? null : value;
}

