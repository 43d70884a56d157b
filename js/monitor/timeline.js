/** What a run held over time, coloured by node. */
import { make, say, svg } from "../dom.js";
import { colour } from "./words.js";

const WIDTH = 1000;
const HEIGHT = 100;

/**
 * What can be drawn of a run: each device, then RAM. Values are in bytes at the run's sample times.
 * A process holds RAM before anything runs, so that scale does not begin with nothing.
 */
export function seriesOf(run, words) {
  const devices = run.samples.devices.map((device, index) => ({
    key: `device ${index}`,
    name: device.name,
    values: device.allocated.map((allocated, i) => allocated ?? device.process[i] ?? device.used[i] ?? 0),
    peaks: run.samples.devices.length === 1 ? "device" : null, // what nodes took is told of all devices together
  }));
  return [...devices, { key: "ram", name: words.text("ram"), values: run.samples.host, peaks: devices.length ? null : "host", isAboveRest: true }];
}

export function durationOf(run) {
  return Math.max(run.seconds ?? run.now, run.samples.at.at(-1) ?? 0, 0.001);
}

export class Timeline {
  /** `onPick(nodeId)` when a node is clicked. */
  constructor(words, onPick) {
    this.words = words;
    this.onPick = onPick;
    this.element = make("div", "lv-timeline");
    this.top = make("div", "lv-axis", this.element);
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "lv-plot" }, this.element);
    this.lane = make("div", "lv-lane", this.element);
    this.bottom = make("div", "lv-axis lv-spread", this.element);
    this.cursor = make("div", "lv-cursor", this.element);
    this.tip = make("div", "lv-tip", this.element);
    this.tip.hidden = this.cursor.hidden = true;
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => (this.tip.hidden = this.cursor.hidden = true));
    this.element.addEventListener("click", (event) => {
      const node = this.run && nodeAt(this.run, this.timeAt(event));
      if (node) this.onPick(node.id);
    });
  }

  /** Draws a series of a run, `order` giving each node id its colour's number; `other` is a second run's curve as {at, values, seconds}. */
  draw(run, series, order, other = null) {
    Object.assign(this, { run, series });
    this.seconds = Math.max(durationOf(run), other?.seconds ?? 0);
    const peaks = series.peaks ? run.nodes.map((node) => node[series.peaks].peak ?? 0) : [];
    const most = maximum(series.values, peaks, other?.values ?? [], [1]);
    const least = series.isAboveRest ? minimum(series.values, peaks.filter(Boolean), other?.values ?? [], [most]) : 0;
    const bottom = Math.max(0, least - 0.15 * (most - least));
    const x = (second) => (WIDTH * second) / this.seconds;
    const y = (size) => HEIGHT * (1 - (size - bottom) / Math.max(1, (most - bottom) * 1.08));
    this.picture.replaceChildren();
    const at = run.samples.at;
    for (const node of run.nodes) {
      const end = endOf(run, node);
      const fill = colour(order.get(node.id));
      const points = inside(at, series.values, node.started, end);
      if (points.length) {
        const line = points.map(([second, size]) => `${x(second).toFixed(2)},${y(size).toFixed(2)}`).join(" ");
        svg("polygon", { points: `${x(points[0][0])},${HEIGHT} ${line} ${x(points.at(-1)[0])},${HEIGHT}`, fill, class: "lv-area" }, this.picture);
      }
      const peak = series.peaks && node[series.peaks].peak;
      if (peak) svg("line", { x1: x(node.started), x2: x(end), y1: y(peak), y2: y(peak), stroke: fill, class: "lv-peak" }, this.picture);
      for (const step of node.steps) svg("line", { x1: x(step.at), x2: x(step.at), y1: HEIGHT - 3, y2: HEIGHT, class: "lv-tick" }, this.picture);
    }
    if (other) {
      const line = other.values.map((size, i) => `${x(other.at[i]).toFixed(2)},${y(size).toFixed(2)}`).join(" ");
      svg("polyline", { points: line, class: "lv-other" }, this.picture);
    }
    this.lane.replaceChildren(
      ...run.nodes.map((node) => {
        const part = make("span", "lv-part");
        part.dataset.node = node.id;
        const end = endOf(run, node);
        Object.assign(part.style, { left: `${x(node.started) / 10}%`, width: `${x(end - node.started) / 10}%`, background: colour(order.get(node.id)) });
        part.classList.toggle("lv-failed", node.status === "error");
        return part;
      }),
    );
    say(this.top, this.words.size(most));
    this.bottom.replaceChildren(make("span", "", null, bottom ? this.words.size(bottom) : "0"), make("span", "", null, this.words.seconds(this.seconds)));
  }

  timeAt(event) {
    const box = this.picture.getBoundingClientRect();
    return (this.seconds * (event.clientX - box.left)) / Math.max(1, box.width);
  }

  point(event) {
    if (!this.run) return;
    const second = Math.min(this.seconds, Math.max(0, this.timeAt(event)));
    const node = nodeAt(this.run, second);
    const size = this.series.values[nearest(this.run.samples.at, second)];
    this.tip.hidden = this.cursor.hidden = !node && size === undefined;
    const lines = [this.words.text("of", { name: node ? node.title || node.type : this.series.name, size: this.words.size(size), time: this.words.seconds(second) })];
    const step = node?.steps.find((one) => one.at >= second);
    if (step) lines.push(this.words.text("step", step));
    const peak = node && this.series.peaks && node[this.series.peaks].peak;
    if (peak) lines.push(`${this.words.text("peak")} ${this.words.size(peak)}`);
    this.tip.textContent = lines.join("\n");
    const frame = this.element.getBoundingClientRect();
    const left = event.clientX - frame.left;
    this.cursor.style.left = `${left}px`;
    this.tip.style.left = `${Math.min(Math.max(0, left + 10), Math.max(0, frame.width - this.tip.offsetWidth))}px`;
  }
}

/** Of lists that may be longer than a call may have arguments. */
function maximum(...lists) {
  return lists.flat().reduce((a, b) => Math.max(a, b), -Infinity);
}

function minimum(...lists) {
  return lists.flat().reduce((a, b) => Math.min(a, b), Infinity);
}

function endOf(run, node) {
  return node.seconds === null ? durationOf(run) : node.started + node.seconds;
}

function nodeAt(run, second) {
  return run.nodes.findLast((node) => node.started <= second && second <= endOf(run, node)) ?? null;
}

/** The samples between two times, and what lies at the ends of that. */
function inside(at, values, start, end) {
  const points = [];
  for (let i = 0; i < at.length; i++) if (at[i] >= start && at[i] <= end) points.push([at[i], values[i]]);
  const first = points[0]?.[1] ?? values[nearest(at, start)];
  if (first === undefined) return [];
  return [[start, first], ...points, [end, points.at(-1)?.[1] ?? first]];
}

function nearest(at, second) {
  let best = at.length ? 0 : -1;
  for (let i = 1; i < at.length; i++) if (Math.abs(at[i] - second) < Math.abs(at[best] - second)) best = i;
  return best;
}
