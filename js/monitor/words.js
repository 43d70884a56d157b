/** The panel's words in the user's language, and sizes and times as people write them. */

export class Words {
  constructor(texts, setting) {
    this.texts = texts;
    this.setting = setting;
  }

  /** The text of a key with {names} filled in. */
  text(key, values = {}) {
    return (this.texts[key] ?? key).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
  }

  /** Bytes, in the unit that the user chose or the one that suits. */
  size(bytes) {
    if (!Number.isFinite(bytes)) return "–";
    const mib = bytes / 2 ** 20;
    const units = this.setting("Units");
    if (units === "MiB" || (units !== "GiB" && Math.abs(mib) < 1024)) return `${Math.round(mib).toLocaleString("en-US")} MiB`;
    return `${(mib / 1024).toFixed(Math.abs(mib) < 10240 ? 2 : 1)} GiB`;
  }

  /** A difference, with its sign. */
  change(bytes) {
    return Math.abs(bytes) < 2 ** 19 ? "=" : `${bytes > 0 ? "+" : "−"}${this.size(Math.abs(bytes))}`;
  }

  seconds(seconds) {
    if (!Number.isFinite(seconds)) return "–";
    if (seconds >= 90) return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    return this.text("seconds", { n: seconds < 10 ? seconds.toFixed(seconds < 0.1 ? 2 : 1) : Math.round(seconds) });
  }
}

// The colours of nodes in turn: those of the VRAM Monitor's plot.
const COLOURS = ["#569ceb", "#e6aa50", "#50be96", "#d682b4", "#96be5a", "#f0825f", "#8c96e6", "#6ec8d7"];

export function colour(index) {
  return COLOURS[index % COLOURS.length];
}
