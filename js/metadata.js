/**
 * Finds the workflow that Video Combine embeds in a file, reading only the bytes that may hold it.
 *
 * `readMetadata(file)` takes a File or Blob and returns `{workflow, prompt}` (JSON texts, either may be missing)
 * or null when the file carries neither. It never throws: a damaged file has no metadata.
 */

const ASCII = new TextDecoder("latin1");
const UTF8 = new TextDecoder("utf-8");
const WANTED = new Set(["workflow", "prompt"]);

/** Index tables and tags are small; anything larger than this is not one of ours. */
const MAX_READ = 64 * 1024 * 1024;

export async function readMetadata(file) {
  try {
    const head = await read(file, 0, 16);
    if (head.length < 13) return null;
    let found = null;
    if (ASCII.decode(head.subarray(0, 3)) === "GIF") found = await gifMetadata(file);
    else if (u32(head, 0) === 0x1a45dfa3) found = await matroskaMetadata(file);
    else if (["ftyp", "wide", "moov", "mdat", "free"].includes(ASCII.decode(head.subarray(4, 8)))) found = await isobmffMetadata(file);
    return found && (found.workflow || found.prompt) ? found : null;
  } catch {
    return null;
  }
}

/** True when the workflow (or API prompt) in `metadata` uses a node of this pack. */
export function isOurs(metadata) {
  const quotedId = /"LeanVideo[A-Za-z]+"/;
  return Boolean(metadata) && (quotedId.test(metadata.workflow ?? "") || quotedId.test(metadata.prompt ?? ""));
}

/** MP4 and QuickTime: boxes; the tags lie in moov[/udta]/meta as a table of `keys` and a list `ilst` of values. */
export async function isobmffMetadata(file) {
  const found = {};
  let at = 0;
  while (at + 8 <= file.size) {
    const head = await read(file, at, 16);
    const box = boxHeader(head, 0, file.size - at);
    if (!box) break;
    if (box.type === "moov" && box.size <= MAX_READ) {
      const moov = await read(file, at + box.header, box.size - box.header);
      const holders = [moov, ...boxes(moov).filter((b) => b.type === "udta").map((b) => b.body)];
      for (const holder of holders) {
        for (const meta of boxes(holder)) if (meta.type === "meta") Object.assign(found, keyedTags(meta.body));
      }
    }
    at += box.size;
  }
  return found;
}

function keyedTags(meta) {
  const found = {};
  // ISO gives `meta` four bytes of version and flags, QuickTime does not.
  const children = boxes(ASCII.decode(meta.subarray(4, 8)) === "hdlr" ? meta : meta.subarray(4));
  const keys = children.find((b) => b.type === "keys")?.body;
  const values = children.find((b) => b.type === "ilst")?.body;
  if (!keys || !values) return found;
  const names = [];
  for (let at = 8; at + 8 <= keys.length; ) {
    const size = u32(keys, at);
    if (size < 8) break;
    names.push(UTF8.decode(keys.subarray(at + 8, at + size)));
    at += size;
  }
  for (const item of boxes(values)) {
    const name = names[item.code - 1];
    const data = boxes(item.body).find((b) => b.type === "data");
    if (WANTED.has(name) && data) found[name] = UTF8.decode(data.body.subarray(8));
  }
  return found;
}

function boxes(bytes) {
  const list = [];
  for (let at = 0; at + 8 <= bytes.length; ) {
    const box = boxHeader(bytes, at, bytes.length - at);
    if (!box) break;
    list.push({ type: box.type, code: u32(bytes, at + 4), body: bytes.subarray(at + box.header, at + box.size) });
    at += box.size;
  }
  return list;
}

function boxHeader(bytes, at, left) {
  if (at + 8 > bytes.length) return null;
  let size = u32(bytes, at);
  let header = 8;
  if (size === 0) size = left;
  if (size === 1) {
    if (at + 16 > bytes.length) return null;
    size = u32(bytes, at + 8) * 2 ** 32 + u32(bytes, at + 12);
    header = 16;
  }
  return size >= header ? { type: ASCII.decode(bytes.subarray(at + 4, at + 8)), size, header } : null;
}

const EBML = { segment: 0x18538067, seekHead: 0x114d9b74, seek: 0x4dbb, seekId: 0x53ab, seekPosition: 0x53ac };
const TAG = { tags: 0x1254c367, tag: 0x7373, simple: 0x67c8, name: 0x45a3, string: 0x4487 };

/** Matroska and WebM: the Tags element of the segment, found through its seek table or else by walking. */
export async function matroskaMetadata(file) {
  const found = {};
  let at = 0;
  let segmentEnd = file.size;
  let segmentStart = 0;
  const tried = new Set();
  while (at < segmentEnd) {
    const element = ebmlHeader(await read(file, at, 12), 0);
    if (!element) break;
    const start = at + element.header;
    const end = element.size === null ? segmentEnd : Math.min(start + element.size, file.size);
    if (element.id === EBML.segment) {
      segmentStart = at = start;
      segmentEnd = end;
      continue;
    }
    if (element.id === TAG.tags && element.size <= MAX_READ) {
      Object.assign(found, simpleTags(await read(file, start, element.size)));
      if (found.workflow) break;
    }
    if (element.id === EBML.seekHead && element.size <= MAX_READ) {
      const target = seekTarget(await read(file, start, element.size), TAG.tags);
      const tags = target === null ? null : segmentStart + target;
      if (tags !== null && tags > at && !tried.has(tags)) {
        tried.add(tags);
        const there = ebmlHeader(await read(file, tags, 12), 0);
        if (there?.id === TAG.tags && there.size !== null && there.size <= MAX_READ) {
          Object.assign(found, simpleTags(await read(file, tags + there.header, there.size)));
          if (found.workflow) break;
        }
      }
    }
    if (element.size === null) break;
    at = end;
  }
  return found;
}

function simpleTags(tags) {
  const found = {};
  for (const tag of ebmlElements(tags)) {
    if (tag.id !== TAG.tag) continue;
    for (const simple of ebmlElements(tag.body)) {
      if (simple.id !== TAG.simple) continue;
      const parts = ebmlElements(simple.body);
      const text = (id) => UTF8.decode(parts.find((p) => p.id === id)?.body ?? new Uint8Array());
      const name = text(TAG.name).toLowerCase();
      if (WANTED.has(name)) found[name] = text(TAG.string).replace(/\0+$/, "");
    }
  }
  return found;
}

function seekTarget(seekHead, id) {
  for (const seek of ebmlElements(seekHead)) {
    if (seek.id !== EBML.seek) continue;
    const parts = ebmlElements(seek.body);
    const number = (which) => (parts.find((p) => p.id === which)?.body ?? []).reduce((sum, byte) => sum * 256 + byte, 0);
    if (number(EBML.seekId) === id) return number(EBML.seekPosition);
  }
  return null;
}

function ebmlElements(bytes) {
  const list = [];
  for (let at = 0; at < bytes.length; ) {
    const element = ebmlHeader(bytes, at);
    if (!element) break;
    const start = at + element.header;
    const end = element.size === null ? bytes.length : start + element.size;
    list.push({ id: element.id, body: bytes.subarray(start, end) });
    at = end;
  }
  return list;
}

/** `size` is null for the "unknown" size that live streams use. */
function ebmlHeader(bytes, at) {
  const idLength = vintLength(bytes[at]);
  const sizeLength = vintLength(bytes[at + idLength]);
  if (!idLength || !sizeLength || at + idLength + sizeLength > bytes.length) return null;
  let id = 0;
  for (let i = 0; i < idLength; i++) id = id * 256 + bytes[at + i];
  let size = bytes[at + idLength] & (0xff >> sizeLength);
  let unknown = size === 0xff >> sizeLength;
  for (let i = 1; i < sizeLength; i++) {
    const byte = bytes[at + idLength + i];
    unknown &&= byte === 0xff;
    size = size * 256 + byte;
  }
  return { id, size: unknown ? null : size, header: idLength + sizeLength };
}

function vintLength(byte) {
  return byte ? Math.clz32(byte) - 23 : 0;
}

/** GIF: comment extensions reading `workflow:<json>` or `prompt:<json>`, before the pictures or after them. */
export async function gifMetadata(file) {
  const start = 1024 * 1024;
  const found = gifComments(await read(file, 0, start));
  if (found.workflow || file.size <= start) return found;
  return gifComments(await read(file, 0, file.size));
}

function gifComments(bytes) {
  const found = {};
  let at = 13 + colorTable(bytes[10]);
  while (at < bytes.length) {
    if (bytes[at] === 0x2c) {
      at = skipBlocks(bytes, at + 11 + colorTable(bytes[at + 9]));
    } else if (bytes[at] === 0x21) {
      const end = skipBlocks(bytes, at + 2);
      if (bytes[at + 1] === 0xfe && end <= bytes.length) {
        const comment = UTF8.decode(joinBlocks(bytes, at + 2));
        const name = comment.slice(0, comment.indexOf(":"));
        if (WANTED.has(name)) found[name] = comment.slice(name.length + 1);
      }
      at = end;
    } else break;
  }
  return found;
}

function colorTable(flags) {
  return flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0;
}

function skipBlocks(bytes, at) {
  while (at < bytes.length && bytes[at]) at += bytes[at] + 1;
  return at + 1;
}

function joinBlocks(bytes, at) {
  const blocks = [];
  for (; bytes[at]; at += bytes[at] + 1) blocks.push(bytes.subarray(at + 1, at + 1 + bytes[at]));
  const joined = new Uint8Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let to = 0;
  for (const block of blocks) {
    joined.set(block, to);
    to += block.length;
  }
  return joined;
}

async function read(file, start, length) {
  return new Uint8Array(await file.slice(start, start + length).arrayBuffer());
}

function u32(bytes, at) {
  return bytes[at] * 2 ** 24 + (bytes[at + 1] << 16) + (bytes[at + 2] << 8) + bytes[at + 3];
}
