/** Lean Video on the page: the moving preview, the player, notes, and dropped clips. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { make } from "./dom.js";
import { clipsOf, hasAddress, notesOf, viewPath } from "./clips.js";
import { listenForDrops } from "./drop.js";
import { nodeOf } from "./nodes.js";
import { existingPanel, panelOf } from "./panel.js";

const SAMPLER = "LeanVideoTemporalSampler";
const WRITERS = ["LeanVideoCombine", "LeanVideoInterpolateFile"];
const OURS = /^LeanVideo/;

app.registerExtension({
  name: "LeanVideo",

  setup() {
    api.addEventListener("lean_video.preview", guarded(({ detail }) => showPreview(detail)));
    api.addEventListener("lean_video.note", guarded(({ detail }) => showNote(detail)));
    api.addEventListener("executing", guarded(({ detail }) => forgetNotes(detail?.node ?? detail)));
    for (const ending of ["execution_interrupted", "execution_error"]) {
      api.addEventListener(ending, guarded(({ detail }) => markStopped(detail?.node_id)));
    }
    listenForDrops(app);
  },

  nodeCreated(node) {
    const id = node.comfyClass ?? node.type;
    if (!OURS.test(id ?? "")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      const result = executed?.call(this, output, ...rest);
      guarded(() => showOutput(this, output))();
      return result;
    };
    if (!WRITERS.includes(id)) return;
    playHere(node);
    // Outputs that the page brings back (another tab, the history) come without an `executed` event.
    const drawn = node.onDrawBackground;
    node.onDrawBackground = function (...args) {
      const result = drawn?.apply(this, args);
      guarded(() => restore(this))();
      return result;
    };
  },

  loadedGraphNode(node) {
    if (!WRITERS.includes(node.type)) return;
    for (const wait of [0, 300, 1500]) setTimeout(guarded(() => restore(node)), wait);
  },
});

// ---- the moving preview of the sampler ----

function showPreview({ node: id, step, steps, image }) {
  const node = nodeOf(app, id);
  if (!node || typeof image !== "string" || !image.startsWith("data:image/")) return;
  withoutImages(node);
  const panel = panelOf(app, node);
  if (!(panel.media instanceof HTMLImageElement)) {
    const picture = make("img", "lean-video-live");
    picture.alt = "Moving preview";
    picture.addEventListener("load", () => panel.show(picture, picture.naturalWidth / picture.naturalHeight));
    panel.show(picture);
  }
  panel.media.src = image;
  panel.live = { step, steps };
  panel.caption(fact(`Step ${step} of ${steps}`));
  panel.progress(step < steps ? step / steps : null);
}

function markStopped(id) {
  const panel = existingPanel(nodeOf(app, id));
  if (!panel?.live || panel.live.step >= panel.live.steps) return;
  panel.progress(null);
  panel.caption(fact(`Stopped at step ${panel.live.step} of ${panel.live.steps}`));
}

// ---- the player of nodes that write a video ----

/** Keeps the page from showing the clip a second time; what it does with other nodes is left alone. */
function playHere(node) {
  withoutImages(node);
  node.hideOutputImages = true;
  const unseen = document.createElement("div");
  Object.defineProperty(node, "videoContainer", { configurable: true, get: () => unseen, set: () => {} });
}

function withoutImages(node) {
  if (Object.getOwnPropertyDescriptor(node, "imgs")?.get) return;
  Object.defineProperty(node, "imgs", { configurable: true, get: () => undefined, set: () => {} });
  node.setSizeForImage = () => {};
  // A still preview that came first has left its widget, which fails to draw without its image.
  const still = node.widgets?.findIndex((widget) => widget.name === "$$canvas-image-preview") ?? -1;
  if (still >= 0) node.widgets.splice(still, 1);
  node.imageIndex = null;
}

const SHOWN = Symbol("lean video clips");

function restore(node) {
  const id = String(node.id);
  const inSubgraph = node.graph && !node.graph.isRootGraph && node.graph.id ? `${node.graph.id}:${id}` : id;
  const output = app.nodeOutputs?.[inSubgraph];
  if (output?.images?.length) showClips(node, output, false);
}

function showOutput(node, output) {
  addNotes(node, notesOf(output));
  if (WRITERS.includes(node.comfyClass ?? node.type)) showClips(node, output, true);
}

/** `fresh`: from a run just now, so a file of the same name in the temporary folder may be another clip. */
function showClips(node, output, fresh) {
  const shown = node[SHOWN];
  if (!fresh && shown && shown.images === output.images) return;
  const clips = clipsOf(output);
  if (!clips.length) return;
  const key = JSON.stringify(clips);
  const rewritten = fresh && clips.some((clip) => clip.shown.type === "temp");
  if (shown?.key === key && existingPanel(node)?.media && !rewritten) {
    shown.images = output.images;
    return;
  }
  node[SHOWN] = { key, images: output.images };
  const panel = panelOf(app, node);
  panel.onClose = () => delete node[SHOWN];
  panel.progress(null);
  play(panel, clips, 0);
}

function play(panel, clips, index) {
  const { shown, file, kind } = clips[index];
  const facts = fact("");
  const media = make(kind === "video" ? "video" : "img", "");
  if (kind === "video") {
    Object.assign(media, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
    media.setAttribute("muted", "");
    media.addEventListener("loadedmetadata", () => {
      panel.show(media, media.videoWidth / media.videoHeight || 0);
      facts.textContent = [size(media.videoWidth, media.videoHeight), seconds(media.duration)].filter(Boolean).join(" · ");
    });
  } else {
    media.alt = file.filename;
    media.addEventListener("load", () => {
      panel.show(media, media.naturalWidth / media.naturalHeight);
      facts.textContent = size(media.naturalWidth, media.naturalHeight);
    });
  }
  media.addEventListener("error", () => {
    if (media.getAttribute("src")) facts.textContent = "cannot be played here";
  });
  panel.show(media);
  media.src = api.apiURL(viewPath(shown)) + `&t=${Date.now()}`;
  panel.caption(...switches(panel, clips, index), nameOf(file, shown), facts);
}

function switches(panel, clips, index) {
  if (clips.length < 2) return [];
  const button = (label, title, step) => {
    const element = make("button", "");
    element.type = "button";
    element.textContent = label;
    element.title = title;
    element.addEventListener("pointerdown", (event) => event.stopPropagation());
    element.addEventListener("click", () => play(panel, clips, (index + step + clips.length) % clips.length));
    return element;
  };
  return [button("‹", "Previous clip", -1), fact(`${index + 1}/${clips.length}`), button("›", "Next clip", 1)];
}

function nameOf(file, shown) {
  const name = hasAddress(file) ? make("a", "lean-video-name") : make("span", "lean-video-name");
  name.textContent = file.filename;
  name.title = [file.subfolder, file.filename].filter(Boolean).join("/");
  if (file.filename !== shown.filename) name.title += `\n${file.format ?? "This format"} does not play in a browser: this is a preview of it.`;
  if (name instanceof HTMLAnchorElement) {
    name.href = api.apiURL(viewPath(file));
    name.target = "_blank";
    name.rel = "noopener";
  }
  return name;
}

function fact(text) {
  const element = make("span", "lean-video-facts");
  element.textContent = text;
  return element;
}

function size(width, height) {
  return width && height ? `${width} × ${height}` : "";
}

function seconds(duration) {
  return Number.isFinite(duration) ? `${duration.toFixed(duration < 10 ? 1 : 0)} s` : "";
}

// ---- notes ----

function showNote({ node: id, text }) {
  if (typeof text !== "string" || !text) return;
  const node = nodeOf(app, id);
  const toast = app.extensionManager?.toast;
  if (toast?.add) toast.add({ severity: "info", summary: node?.title || "Lean Video", detail: text, life: 6000 });
  else if (node) addNotes(node, text);
}

/** Adds the lines of `text` to those on the node, each once. */
function addNotes(node, text) {
  if (!text) return;
  const panel = panelOf(app, node);
  const lines = new Set([...panel.noteText.split("\n"), ...text.split("\n")]);
  lines.delete("");
  panel.note([...lines].join("\n"));
}

/** A node that runs again says again what there is to say. */
function forgetNotes(id) {
  if (id === null || id === undefined) return;
  existingPanel(nodeOf(app, id))?.note("");
}

/** An extension that throws can stop the page from loading a workflow: report and go on. */
function guarded(callback) {
  return (...args) => {
    try {
      return callback(...args);
    } catch (error) {
      console.error("Lean Video:", error);
    }
  };
}
