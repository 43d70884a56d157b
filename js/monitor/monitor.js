/** The panel: what there is now, whether the graph will fit, and where the memory of the last runs went. It asks for nothing while it is closed. */
import { make } from "../dom.js";
import { Fit } from "./fit.js";
import { Now } from "./now.js";
import { Runs } from "./runs.js";
import { goTo, nodeOf } from "../nodes.js";

const FIT_MS = 700;
const RUN_MS = 500;
const MOST_AWAY = 4; // looks

export class Monitor {
  constructor(app, api, words, setting, badges) {
    Object.assign(this, { app, api, words, setting, badges });
    this.element = null;
  }

  /** Shows itself in `container` until that is taken off the page, or `close`. Pages may ask again and again, before the container is on the page too. */
  open(container) {
    if (this.element) {
      if (this.element.parentElement !== container) container.append(this.element);
      return;
    }
    const { words } = this;
    const pick = (id) => goTo(this.app, nodeOf(this.app, id));
    this.element = make("div", "lv-panel", container);
    this.now = this.section("now", new Now(words));
    this.fit = this.section("fit", new Fit(this.app, words, (graph, card, changes) => this.post(graph, card, changes), pick, (answer) => this.onFit(answer)));
    this.runs = this.section("runs", new Runs(words, (path) => this.get(path), pick));
    this.away = 0;
    this.states = {};
    void this.runs.refresh();
    this.tick(this.element);
  }

  close() {
    clearTimeout(this.timer);
    this.element?.remove();
    this.element = null;
    this.badges.warn(new Map());
  }

  get isOpen() {
    return Boolean(this.element?.isConnected);
  }

  /** A run has begun or ended, or the server is back. */
  changed() {
    if (this.isOpen) void this.runs.refresh();
  }

  section(key, part) {
    const section = make("section", `lv-section lv-section-${key}`, this.element);
    make("h3", "", section, this.words.text(key));
    section.append(part.element);
    return part;
  }

  tick(element) {
    if (this.element !== element) return;
    if (element.isConnected) this.away = 0;
    else if (++this.away > MOST_AWAY) return this.close();
    const rate = Math.min(10, Math.max(0.2, Number(this.setting("Rate")) || 2));
    if (!document.hidden && element.isConnected) {
      this.when("now", 1000 / rate, () => this.look());
      this.when("fit", FIT_MS, () => this.fit.look());
      this.when("run", RUN_MS, () => this.runs.isLive && this.runs.load());
    }
    this.timer = setTimeout(() => this.tick(element), Math.min(1000 / rate, RUN_MS));
  }

  async look() {
    const snapshot = await this.get("/lean_video/vram");
    this.now.update(snapshot);
    if (snapshot && this.wasAway) void this.runs.refresh(); // what ended meanwhile was told to nobody
    this.wasAway = !snapshot;
  }

  /** Begins `act` when its time has come, unless it is still at work. */
  when(what, period, act) {
    const state = (this.states[what] ??= { due: 0, isBusy: false });
    const now = performance.now();
    if (state.isBusy || now < state.due) return;
    Object.assign(state, { due: now + period - 20, isBusy: true });
    void (async () => {
      try {
        await act();
      } catch (error) {
        console.error("Lean Video:", error);
      } finally {
        state.isBusy = false;
      }
    })();
  }

  onFit(answer) {
    const warnings = new Map();
    for (const node of answer?.nodes ?? []) {
      const there = node.fits === false && nodeOf(this.app, node.id);
      if (there) warnings.set(there, this.words.text("wouldNotFit", { size: this.words.size(node.peak) }));
    }
    this.badges.warn(warnings);
  }

  async get(path) {
    try {
      const response = await this.api.fetchApi(path);
      return response.ok ? await response.json() : null;
    } catch {
      return null; // the server is away
    }
  }

  async post(graph, cardMib, changes) {
    try {
      const body = JSON.stringify({ prompt: graph, changes, ...(cardMib ? { card_mib: cardMib } : {}) });
      const response = await this.api.fetchApi("/lean_video/preflight", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      const answer = await response.json();
      return response.ok ? { answer } : { why: answer.error };
    } catch {
      return { key: "unreachable" };
    }
  }
}
