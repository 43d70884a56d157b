/** What there is now: a bar for each GPU, and one for RAM. */
import { make, say } from "../dom.js";

export class Now {
  constructor(words) {
    this.words = words;
    this.element = make("div", "lv-now");
    this.problem = make("p", "lv-quiet", this.element);
    this.problem.hidden = true;
    this.rows = new Map();
  }

  /** `snapshot` is what the server tells; null when it does not answer. */
  update(snapshot) {
    const { words } = this;
    if (!snapshot) return say(this.problem, words.text("unreachable"));
    say(this.problem, snapshot.problem ?? "");
    const seen = new Set(["ram"]);
    for (const device of snapshot.devices) {
      const key = `${device.backend} ${device.index}`;
      seen.add(key);
      const own = device.process ?? device.reserved ?? 0;
      this.row(key).show(words, { name: `${device.index} · ${device.name}`, total: device.total, used: device.used, own, facts: factsOf(words, device), problem: device.problem });
    }
    const { host } = snapshot;
    this.row("ram").show(words, { name: words.text("ram"), total: host.total, used: host.used, own: host.process, facts: [] });
    for (const [key, row] of this.rows) {
      if (seen.has(key)) continue;
      row.element.remove();
      this.rows.delete(key);
    }
    this.element.append(this.rows.get("ram").element); // below the cards
  }

  row(key) {
    if (!this.rows.has(key)) {
      const row = new Row();
      this.rows.set(key, row);
      this.element.append(row.element);
    }
    return this.rows.get(key);
  }
}

class Row {
  constructor() {
    this.element = make("div", "lv-device");
    const head = make("div", "lv-head", this.element);
    this.name = make("span", "lv-name", head);
    this.amount = make("span", "lv-amount", head);
    this.bar = make("div", "lv-bar", this.element);
    this.own = make("span", "lv-own", this.bar);
    this.others = make("span", "lv-others", this.bar);
    this.facts = make("div", "lv-quiet", this.element);
    this.problem = make("div", "lv-bad", this.element);
  }

  show(words, { name, total, used, own, facts, problem }) {
    say(this.name, name);
    this.name.title = name;
    say(this.amount, words.text("used", { used: words.size(used), total: words.size(total) }));
    const share = (size) => `${total > 0 ? Math.min(100, (100 * Math.max(0, size)) / total) : 0}%`;
    this.own.style.width = share(own);
    this.others.style.width = share(used - own);
    this.bar.title = [
      `${words.text("thisProcess")}: ${words.size(own)}`,
      `${words.text("others")}: ${words.size(Math.max(0, used - own))}`,
      words.text("free", { size: words.size(total - used) }),
    ].join("\n");
    this.bar.classList.toggle("lv-full", total > 0 && used / total > 0.95);
    say(this.facts, facts.join(" · "));
    say(this.problem, problem ?? "");
  }
}

function factsOf(words, device) {
  const facts = [];
  if (device.utilisation !== null) facts.push(`${device.utilisation} %`);
  if (device.temperature !== null) facts.push(`${Math.round(device.temperature)} °C`);
  if (device.power !== null) facts.push(`${Math.round(device.power)}${device.power_limit ? `/${Math.round(device.power_limit)}` : ""} W`);
  const largest = [...device.others].sort((a, b) => (b.used ?? 0) - (a.used ?? 0)).slice(0, 2);
  for (const other of largest) facts.push(`${other.name ?? other.pid}${other.used ? ` ${words.size(other.used)}` : ""}`);
  return facts;
}
