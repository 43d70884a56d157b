/** The last runs: which node took what in one of them, beside what was expected and beside another run. */
import { button, make, save, say } from "../dom.js";
import { Timeline, durationOf, seriesOf } from "./timeline.js";
import { colour } from "./words.js";

const NEWEST = "";
const MOST_ROWS = 80;

export class Runs {
  /** `ask(path)` gives what the server has at an address, or null; `onPick(nodeId)` when a node is clicked. */
  constructor(words, ask, onPick) {
    this.words = words;
    this.ask = ask;
    this.onPick = onPick;
    this.chosen = NEWEST;
    this.with = NEWEST;
    this.shown = 0;
    this.series = null;
    this.element = make("div", "lv-runs");
    this.none = make("p", "lv-quiet", this.element, words.text("noRuns"));
    this.list = make("select", "lv-select", this.element);
    this.list.setAttribute("aria-label", words.text("runs"));
    this.list.addEventListener("change", () => this.choose(this.list.value));
    this.message = make("p", "lv-bad", this.element);
    this.kinds = make("div", "lv-kinds", this.element);
    this.timeline = new Timeline(words, onPick);
    this.element.append(this.timeline.element);
    this.compare = make("label", "lv-line", this.element, words.text("compare"));
    this.others = make("select", "lv-select", this.compare);
    this.others.addEventListener("change", () => {
      this.with = this.others.value;
      void this.load();
    });
    this.table = make("table", "lv-table", this.element);
    this.exports = make("div", "lv-line", this.element);
    button(words.text("saveJson"), "lv-button", this.exports, () => void this.keep("", "json"));
    button(words.text("saveTrace"), "lv-button", this.exports, () => void this.keep("/trace", "trace.json"));
    this.draw(null, null);
  }

  /** Asks which runs there are, and for the one that is shown. */
  async refresh() {
    const runs = await this.ask("/lean_video/runs");
    if (!runs) return;
    this.runs = runs;
    fill(this.list, runs, (run) => this.nameOf(run), this.chosen || runs[0]?.id);
    const rest = runs.filter((run) => run.id !== this.current());
    fill(this.others, rest, (run) => this.nameOf(run), this.with, this.words.text("compareNone"));
    await this.load();
  }

  /** Whether what is shown goes on changing. */
  get isLive() {
    return this.runs?.find((run) => run.id === this.current())?.status === "running";
  }

  current() {
    return this.runs?.some((run) => run.id === this.chosen) ? this.chosen : (this.runs?.[0]?.id ?? null);
  }

  choose(id) {
    this.chosen = id === this.runs?.[0]?.id ? NEWEST : id;
    void this.refresh();
  }

  async load() {
    const number = ++this.shown; // an answer that comes after a later question is of no use
    const id = this.current();
    const other = this.with && this.with !== id ? this.with : null;
    const [run, beside] = await Promise.all([id, other].map((one) => one && this.ask(`/lean_video/runs/${encodeURIComponent(one)}`)));
    if (number === this.shown) this.draw(run, beside);
  }

  draw(run, other) {
    const { words } = this;
    this.run = run;
    this.none.hidden = Boolean(run);
    for (const part of [this.list, this.timeline.element, this.compare, this.table, this.exports]) part.hidden = !run;
    say(this.message, run?.message ?? "");
    this.kinds.hidden = true;
    if (!run) return;
    const order = new Map();
    for (const node of run.nodes) if (!order.has(node.id)) order.set(node.id, order.size);
    const choices = seriesOf(run, words);
    const series = choices.find((one) => one.key === this.series) ?? choices[0];
    this.kinds.hidden = choices.length < 2;
    this.kinds.replaceChildren(
      ...choices.map((one) => {
        const element = button(one.name, "lv-kind", null, () => {
          this.series = one.key;
          this.draw(run, other);
        });
        element.setAttribute("aria-pressed", String(one === series));
        return element;
      }),
    );
    const curve = other && seriesOf(other, words).find((one) => one.key === series.key);
    this.timeline.draw(run, series, order, curve ? { at: other.samples.at, values: curve.values, seconds: durationOf(other) } : null);
    this.fillTable(run, other, order);
  }

  fillTable(run, other, order) {
    const { words } = this;
    const kind = run.samples.devices.length ? "device" : "host";
    const rows = [...summed(run, kind).values()];
    const beside = other && summed(other, kind);
    // What is planned of a device says little of RAM, which a process keeps and uses again.
    const expected = kind === "device" && rows.some((row) => row.predicted !== null);
    const head = make("tr");
    const titles = [words.text("node"), words.text(kind === "device" ? "peak" : "taken"), ...(expected ? [words.text("expected")] : []), ...(beside ? ["Δ"] : []), words.text("time"), ...(beside ? ["Δ"] : [])];
    for (const title of titles) make("th", "", head, title);
    this.table.replaceChildren(
      head,
      ...rows.slice(0, MOST_ROWS).map((row) => {
        const line = make("tr");
        line.dataset.node = row.id;
        const name = button(row.name, "lv-node", make("td", "", line), () => this.onPick(row.id));
        name.title = `${row.name}\n${row.type} · ${row.id}`;
        name.style.setProperty("--lv-colour", colour(order.get(row.id)));
        name.classList.toggle("lv-bad", row.status === "error");
        const match = beside?.get(row.id)?.type === row.type ? beside.get(row.id) : [...(beside?.values() ?? [])].find((one) => one.type === row.type);
        make("td", "", line, words.size(row.size));
        if (expected) make("td", "lv-quiet", line, row.predicted === null ? "–" : words.size(row.predicted));
        if (beside) make("td", "lv-quiet", line, match ? words.change(row.size - match.size) : "–");
        make("td", "", line, words.seconds(row.seconds));
        if (beside) make("td", "lv-quiet", line, match ? `${row.seconds >= match.seconds ? "+" : "−"}${Math.abs(row.seconds - match.seconds).toFixed(1)}` : "–");
        return line;
      }),
    );
  }

  nameOf(run) {
    const at = new Date(1000 * run.started).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    const facts = [at, this.words.text(run.status), this.words.size(run.peak.device ?? run.peak.host)];
    if (run.seconds !== null) facts.push(this.words.seconds(run.seconds));
    return facts.join(" · ");
  }

  async keep(path, ending) {
    if (!this.run) return;
    const found = await this.ask(`/lean_video/runs/${encodeURIComponent(this.run.id)}${path}`);
    if (found) save(`run-${this.run.id.slice(0, 8)}.${ending}`, JSON.stringify(found));
  }
}

/**
 * Each node of a run once, in order: the most that it held of a device, or what it took of RAM (the process holds much before the first node begins),
 * and its seconds in all.
 */
export function summed(run, kind = run.nodes.some((node) => node.device.peak !== null) ? "device" : "host") {
  const found = new Map();
  for (const node of run.nodes) {
    const { start, peak } = node[kind];
    const size = kind === "device" ? (peak ?? NaN) : Math.max(0, peak - start);
    const seconds = node.seconds ?? Math.max(0, run.now - node.started);
    const row = found.get(node.id) ?? { id: node.id, type: node.type, name: node.title || node.type || node.id, size: 0, seconds: 0, predicted: null, status: "done" };
    row.size = Math.max(row.size, size);
    row.seconds += seconds;
    row.predicted = node.predicted ?? row.predicted;
    row.status = node.status;
    found.set(node.id, row);
  }
  return found;
}

function fill(list, runs, nameOf, chosen, none = null) {
  const wanted = [...(none === null ? [] : [["", none]]), ...runs.map((run) => [run.id, nameOf(run)])];
  if (JSON.stringify(wanted) !== list.dataset.shown && document.activeElement !== list) {
    list.dataset.shown = JSON.stringify(wanted);
    list.replaceChildren(...wanted.map(([value, text]) => Object.assign(make("option", "", null, text), { value })));
  }
  list.value = wanted.some(([value]) => value === chosen) ? chosen : (wanted[0]?.[0] ?? "");
}
