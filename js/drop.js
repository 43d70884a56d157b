/**
 * Dropping a clip on the canvas brings back the workflow that made it, where the page does not do so itself:
 * MP4, MOV, MKV, WebM and GIF (PNG and WebP are read by every ComfyUI page).
 *
 * The drop is held back while the file's tags are read; a file without a workflow of ours is dropped again,
 * untouched, for the page and the other extensions.
 */
import { isOurs, readMetadata } from "./metadata.js";

const READ_HERE = /\.(mp4|m4v|mov|mkv|webm|gif)$/i;
const RETURNED = new WeakSet();

export function listenForDrops(app) {
  window.addEventListener("drop", (event) => {
    const file = heldFile(app, event);
    if (!file) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    void open(app, file, event.target, position(event));
  }, true);
}

function heldFile(app, event) {
  if (RETURNED.has(event) || event.defaultPrevented) return null;
  const files = event.dataTransfer?.files;
  if (files?.length !== 1 || !READ_HERE.test(files[0].name ?? "")) return null;
  const target = event.target;
  if (target?.closest?.("dialog, [role='dialog'], .comfy-modal, input, textarea")) return null;
  return takesDrops(app, target) ? null : files[0];
}

/** True over a node that wants files itself, such as an uploader. */
function takesDrops(app, target) {
  if (app.dragOverNode?.onDragDrop) return true;
  const id = target?.closest?.("[data-node-id]")?.dataset.nodeId;
  const graph = app.canvas?.graph ?? app.graph;
  return id !== undefined && Boolean(graph?.getNodeById?.(id)?.onDragDrop ?? graph?.getNodeById?.(Number(id))?.onDragDrop);
}

async function open(app, file, target, at) {
  const metadata = await readMetadata(file);
  if (!isOurs(metadata) || !(await load(app, metadata, file.name))) dropAgain(file, target, at);
}

async function load(app, metadata, fileName) {
  const name = fileName.replace(/\.[^.]+$/, "");
  const workflow = parsed(metadata.workflow);
  const prompt = parsed(metadata.prompt);
  try {
    if (workflow) await app.loadGraphData(workflow, true, true, name);
    else if (prompt && app.loadApiJson) await app.loadApiJson(prompt, name);
    else return false;
    return true;
  } catch (error) {
    console.error("Lean Video: the workflow in this file could not be loaded", error);
    return false;
  }
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function dropAgain(file, target, at) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, composed: true, dataTransfer, ...at });
  RETURNED.add(event);
  (target?.isConnected ? target : document.body).dispatchEvent(event);
}

function position({ clientX, clientY, screenX, screenY }) {
  return { clientX, clientY, screenX, screenY };
}
