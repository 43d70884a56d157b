/**
 * What Video Combine produced, as a list the player understands.
 *
 * `clipsOf(output)` takes a node's ui output and returns one entry per clip:
 * `{shown, file, kind}`: the file to play, the file that was made (another one where a browser cannot play it)
 * and "video" or "image". `viewPath(file)` is the path under the API that serves it.
 */

const IMAGES = /\.(gif|webp|png|apng|jpe?g|avif)$/i;

export function clipsOf(output) {
  // The page previews a node's upload in the same place, also where nothing is chosen yet.
  const shown = (output?.images ?? []).filter((file) => file?.filename && file.filename !== "undefined");
  const files = output?.lean_video_files ?? [];
  return shown.map((file, i) => ({
    shown: file,
    file: files[i] ?? file,
    kind: IMAGES.test(file.filename) ? "image" : "video",
  }));
}

export function viewPath(file) {
  const query = new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "", type: file.type ?? "output" });
  return `/view?${query}`;
}

/** True when a browser can open `file` itself: a PNG sequence is a folder and has no address. */
export function hasAddress(file) {
  return /\.[A-Za-z0-9]+$/.test(file?.filename ?? "");
}

/** The notes in a node's ui output as one text, or "". */
export function notesOf(output) {
  const text = output?.text;
  return (Array.isArray(text) ? text.flat() : [text]).filter((line) => typeof line === "string" && line).join("\n");
}
