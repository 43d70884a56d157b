/** Lean Video's monitor on the page: a tab of the sidebar (a floating panel on older pages), badges on nodes, settings. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Badges } from "./monitor/badges.js";
import { button, loadStyle, make } from "./dom.js";
import { Monitor } from "./monitor/monitor.js";
import { summed } from "./monitor/runs.js";
import { Words } from "./monitor/words.js";
import { pathOf } from "./nodes.js";

const SETTING = "LeanVideo.Monitor.";
const DEFAULTS = { Rate: 2, Units: "automatic", Badges: true };
const SETTINGS = [
  {
    id: `${SETTING}Rate`,
    category: ["Lean Video", "Monitor", "Rate"],
    name: "Updates per second while the panel is open",
    tooltip: "More often is smoother. While the panel is closed, nothing is asked of the server.",
    type: "slider",
    attrs: { min: 1, max: 10, step: 1 },
    defaultValue: DEFAULTS.Rate,
  },
  {
    id: `${SETTING}Units`,
    category: ["Lean Video", "Monitor", "Units"],
    name: "Units of memory",
    tooltip: "automatic: MiB below 1 GiB, GiB from there on.",
    type: "combo",
    options: ["automatic", "MiB", "GiB"],
    defaultValue: DEFAULTS.Units,
  },
  {
    id: `${SETTING}Badges`,
    category: ["Lean Video", "Monitor", "Badges"],
    name: "After a run, show on each node what it took",
    tooltip: "The most memory that it held and how long it ran, at its upper left corner.",
    type: "boolean",
    defaultValue: DEFAULTS.Badges,
    onChange: (isOn) => !isOn && badges.show(new Map()),
  },
];

const badges = new Badges(app);
const hasSettings = () => Boolean(app.extensionManager?.setting?.get);

app.registerExtension({
  name: "LeanVideo.Monitor",
  settings: SETTINGS,

  async setup() {
    if (!hasSettings()) for (const setting of SETTINGS) app.ui?.settings?.addSetting?.(setting);
    loadStyle("./vram_monitor.css", import.meta.url);
    const words = new Words(await texts(), setting);
    const monitor = new Monitor(app, api, words, setting, badges);
    if (app.extensionManager?.registerSidebarTab) sidebarTab(monitor, words);
    else floatingPanel(monitor, words);

    let waiting = null;
    api.addEventListener("lean_video.run", ({ detail }) => {
      // Many short runs in a row are looked at once.
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        monitor.changed();
        if (detail?.status !== "running" && setting("Badges")) void showBadges(monitor, words, detail.id);
      }, 200);
    });
    api.addEventListener("reconnected", () => monitor.changed());
  },
});

function setting(name) {
  const id = SETTING + name;
  const value = hasSettings() ? app.extensionManager.setting.get(id) : app.ui?.settings?.getSettingValue?.(id, DEFAULTS[name]);
  return value ?? DEFAULTS[name];
}

async function texts() {
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") || navigator.language || "en";
  try {
    const response = await api.fetchApi(`/lean_video/text/${encodeURIComponent(locale)}`);
    return response.ok ? await response.json() : {};
  } catch {
    return {}; // the server is away: keys are shown, as English as they are
  }
}

function sidebarTab(monitor, words) {
  app.extensionManager.registerSidebarTab({
    id: "lean-video-vram",
    icon: "pi pi-gauge",
    title: words.text("tab"),
    tooltip: words.text("tabTip"),
    type: "custom",
    render: (container) => monitor.open(container),
    destroy: () => monitor.close(),
  });
}

/** For pages without a sidebar: a button in the menu, and a panel that can be moved by its head. */
function floatingPanel(monitor, words) {
  const frame = make("div", "lv-floating", document.body);
  frame.hidden = true;
  const head = make("div", "lv-floating-head", frame, words.text("tab"));
  const shut = () => {
    frame.hidden = true;
    monitor.close();
  };
  const body = make("div", "lv-floating-body", frame);
  button("×", "lv-close", head, shut).title = words.text("close");
  head.addEventListener("pointerdown", (down) => {
    if (down.target !== head) return;
    const box = frame.getBoundingClientRect();
    const move = (event) => {
      frame.style.left = `${Math.min(innerWidth - 60, Math.max(60 - box.width, box.left + event.clientX - down.clientX))}px`;
      frame.style.top = `${Math.min(innerHeight - 30, Math.max(0, box.top + event.clientY - down.clientY))}px`;
      frame.style.right = "auto";
    };
    const done = () => removeEventListener("pointermove", move);
    addEventListener("pointermove", move);
    addEventListener("pointerup", done, { once: true });
  });
  const open = button(words.text("tab"), "lv-open", app.ui?.menuContainer ?? document.body, () => {
    if (!frame.hidden) return shut();
    frame.hidden = false;
    monitor.open(body);
  });
  open.title = words.text("tabTip");
}

async function showBadges(monitor, words, id) {
  const run = await monitor.get(`/lean_video/runs/${encodeURIComponent(id)}?samples=0`);
  if (!run) return;
  const found = new Map();
  for (const row of summed(run).values()) {
    const path = pathOf(app, row.id);
    const last = path.at(-1);
    // Another page may have run another graph, in which this number is another node.
    if (!last || (row.type && !last.subgraph && (last.comfyClass ?? last.type) !== row.type)) continue;
    for (const node of path) {
      const sum = found.get(node) ?? { size: 0, seconds: 0 };
      sum.size = Math.max(sum.size, Number.isFinite(row.size) ? row.size : 0);
      sum.seconds += row.seconds;
      found.set(node, sum);
    }
  }
  badges.show(new Map([...found].map(([node, { size, seconds }]) => [node, `${words.size(size)} · ${words.seconds(seconds)}`])));
}
