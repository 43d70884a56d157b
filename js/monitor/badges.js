/** What each node took, at its upper left corner after a run (at the right the page shows badges of its own): elements over the canvas, which the canvas itself knows nothing of. */
import { make } from "../dom.js";

const LEAST_SCALE = 0.35;
const TITLE = 30;

export class Badges {
  constructor(app) {
    this.app = app;
    this.badges = new Map();
    this.warnings = new Map();
  }

  /** `texts` maps nodes to their text; what there was goes. */
  show(texts) {
    this.replace(this.badges, texts, "lv-badge");
  }

  /** The same for nodes that will not fit. */
  warn(texts) {
    this.replace(this.warnings, texts, "lv-badge lv-warning");
  }

  replace(shown, texts, className) {
    for (const element of shown.values()) element.remove();
    shown.clear();
    if (texts.size && !this.attach()) return;
    for (const [node, text] of texts) {
      const element = make("div", className, this.layer, text);
      element.dataset.node = node.id;
      shown.set(node, element);
    }
    this.place();
  }

  attach() {
    if (this.layer) return true;
    const { canvas } = this.app;
    const holder = canvas?.canvas?.parentElement;
    if (!holder) return false;
    this.layer = make("div", "lv-badges", holder);
    const drawn = canvas.onDrawForeground;
    const badges = this;
    canvas.onDrawForeground = function (...args) {
      const result = drawn?.apply(this, args);
      badges.place();
      return result;
    };
    return true;
  }

  /** Moves each to its node; a few numbers are compared when nothing has moved. */
  place() {
    if (!this.layer || this.badges.size + this.warnings.size === 0) return;
    const { canvas } = this.app;
    const { scale, offset } = canvas.ds;
    const element = canvas.canvas;
    for (const shown of [this.badges, this.warnings]) {
      for (const [node, badge] of shown) {
        const row = shown === this.warnings && this.badges.has(node) ? 1 : 0;
        const graph = canvas.graph ?? this.app.graph;
        const isHere = scale >= LEAST_SCALE && graph?.getNodeById?.(node.id) === node;
        const x = element.offsetLeft + (node.pos[0] + offset[0]) * scale;
        const y = element.offsetTop + (node.pos[1] - TITLE + offset[1]) * scale;
        const place = isHere ? `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) scale(${scale.toFixed(3)}) translate(0, ${-100 * (1 + row)}%)` : "";
        if (badge.dataset.place === place) continue;
        badge.dataset.place = place;
        badge.hidden = !isHere;
        badge.style.transform = place;
      }
    }
  }
}
