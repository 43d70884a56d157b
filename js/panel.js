/**
 * The panel at the foot of a node: a stage for a picture or a clip, one line under it, and notes.
 *
 * `panelOf(app, node)` gives the node's only panel, made on first use as a DOM widget, so that it is drawn alike by
 * the canvas and by the Vue node renderer. It is removed with its node.
 */

import { loadStyle, make } from "./dom.js";

const PANEL = Symbol("lean video panel");
const MARGIN = 10;
const LINE = 22;
const LEAST_STAGE = 90;
const MOST_STAGE = 420;

export function panelOf(app, node) {
  return (node[PANEL] ??= new Panel(app, node));
}

/** The node's panel if it has one already. */
export function existingPanel(node) {
  return node?.[PANEL] ?? null;
}

class Panel {
  constructor(app, node) {
    loadStyle("./lean_video.css", import.meta.url);
    this.node = node;
    this.element = make("div", "lean-video");
    this.stage = make("div", "lean-video-stage", this.element);
    this.track = make("div", "lean-video-track", this.element);
    this.line = make("div", "lean-video-line", this.element);
    this.notes = make("div", "lean-video-notes", this.element);
    this.ratio = 0;
    this.minHeight = 0;
    this.element.addEventListener("wheel", (event) => this.passWheel(app, event), { passive: true });
    this.widget = node.addDOMWidget("lean_video_panel", "lean_video_panel", this.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.minHeight,
      getValue: () => "",
      setValue: () => {},
    });
    this.widget.serialize = false;
    this.widget.serializeValue = () => undefined;
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      this[PANEL]?.close();
      return removed?.apply(this, args);
    };
    this.fit();
  }

  /** Puts `media` (an element or null) on the stage; `ratio` is its width over its height, if known by now. */
  show(media, ratio = 0) {
    if (this.media !== media) {
      release(this.media);
      this.media = media;
      this.stage.replaceChildren(...(media ? [media] : []));
    }
    if (!media) this.setRatio(0);
    else if (ratio) this.setRatio(ratio);
  }

  setRatio(ratio) {
    if (Math.abs(ratio - this.ratio) < 0.01) return;
    this.ratio = ratio;
    this.stage.style.aspectRatio = ratio ? String(ratio) : "";
    this.fit();
  }

  /** Text, or elements, for the line under the stage. */
  caption(...parts) {
    const was = this.line.hidden;
    this.line.replaceChildren(...parts);
    this.line.hidden = parts.length === 0;
    if (was !== this.line.hidden) this.fit();
  }

  /** Fills the thin bar under the stage: 0..1, or null to hide it. */
  progress(fraction) {
    this.track.hidden = fraction === null;
    this.track.style.setProperty("--lean-video-done", `${100 * (fraction ?? 0)}%`);
  }

  note(text) {
    if (this.notes.textContent === text) return;
    this.notes.textContent = text;
    this.fit();
  }

  get noteText() {
    return this.notes.textContent;
  }

  /** Makes room once for what the panel holds now; afterwards the user may make the node smaller again. */
  fit() {
    const { node } = this;
    this.stage.hidden = !this.media;
    this.notes.hidden = !this.notes.textContent;
    this.line.hidden = !this.line.childNodes.length;
    const width = Math.max(node.size[0] - 2 * MARGIN, 120);
    const text = (this.line.hidden ? 0 : LINE) + this.noteHeight(width);
    const stage = this.ratio ? Math.min(width / this.ratio, MOST_STAGE) : this.media ? LEAST_STAGE : 0;
    this.element.style.display = this.media || text ? "" : "none";
    this.minHeight = text + stage && text + stage + 2 * MARGIN;
    this.grow();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.minHeight = text + stage && text + Math.min(stage, LEAST_STAGE) + 2 * MARGIN;
    }, 500);
  }

  grow() {
    const { node } = this;
    const needed = node.computeSize?.()[1] ?? 0;
    if (!node.flags?.collapsed) node.setSize([node.size[0], Math.max(node.size[1], needed)]);
    (node.graph ?? this.node.graph)?.setDirtyCanvas?.(true, true);
  }

  noteHeight(width) {
    if (!this.notes.textContent) return 0;
    const perLine = Math.max(Math.floor(width / 6.2), 10);
    const lines = this.notes.textContent.split("\n").reduce((sum, line) => sum + Math.max(Math.ceil(line.length / perLine), 1), 0);
    return 16 * lines + 8;
  }

  /** On the canvas a DOM widget covers the graph: let the wheel go on zooming it. */
  passWheel(app, event) {
    if (!this.element.closest("[data-node-id]")) app.canvas?.processMouseWheel?.(event);
  }

  close() {
    clearTimeout(this.settling);
    release(this.media);
    this.media = null;
    this.onClose?.();
    this.element.remove();
    delete this.node[PANEL];
  }
}

function release(media) {
  if (!media) return;
  media.pause?.();
  media.removeAttribute("src");
  media.load?.();
}
