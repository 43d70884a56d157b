/** Run with `node --test tests/js/`. The files are built here, byte by byte, from the container specifications. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";

const load = async (name) => {
  const source = await readFile(new URL(`../../js/${name}`, import.meta.url), "utf8");
  return import(`data:text/javascript;base64,${Buffer.from(source).toString("base64")}`);
};
const { isOurs, readMetadata } = await load("metadata.js");
const { clipsOf, hasAddress, notesOf, viewPath } = await load("clips.js");

const WORKFLOW = JSON.stringify({ nodes: [{ id: 1, type: "LeanVideoCombine", title: "Zürich ✓" }], filler: "x".repeat(700) });
const text = (value) => Buffer.from(value, "utf8");
const u32 = (value) => Buffer.from([value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]);
const box = (type, ...parts) => {
  const body = Buffer.concat(parts);
  return Buffer.concat([u32(body.length + 8), text(type), body]);
};
const tagTable = (tags, fullBox) => {
  const names = Object.keys(tags);
  const keys = names.map((name) => Buffer.concat([u32(text(name).length + 8), text("mdta"), text(name)]));
  const values = names.map((name, i) => {
    const data = box("data", u32(1), u32(0), text(tags[name]));
    return Buffer.concat([u32(data.length + 8), u32(i + 1), data]);
  });
  const children = [box("hdlr", Buffer.alloc(25)), box("keys", u32(0), u32(names.length), ...keys), box("ilst", ...values)];
  return fullBox ? box("meta", u32(0), ...children) : box("meta", ...children);
};
const element = (id, body) => {
  const size = Buffer.alloc(8);
  size.writeBigUInt64BE(BigInt(body.length) | (1n << 56n));
  return Buffer.concat([Buffer.from(id, "hex"), size, body]);
};
const simpleTag = (name, value) => element("67c8", Buffer.concat([element("45a3", text(name)), element("4487", text(value))]));
const gif = (comment) => {
  const blocks = [];
  for (let at = 0; at < comment.length; at += 255) {
    const part = comment.subarray(at, at + 255);
    blocks.push(Buffer.from([part.length]), part);
  }
  const screen = Buffer.concat([text("GIF89a"), Buffer.from([1, 0, 1, 0, 0x80, 0, 0, 0, 0, 0, 255, 255, 255])]);
  const image = Buffer.from([0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0]);
  return Buffer.concat([screen, image, Buffer.from([0x21, 0xfe]), ...blocks, Buffer.from([0, 0x3b])]);
};

const mp4 = Buffer.concat([
  box("ftyp", text("isom0000")),
  box("mdat", Buffer.alloc(5000, 7)),
  box("moov", box("mvhd", Buffer.alloc(100)), box("udta", tagTable({ title: "clip", workflow: WORKFLOW, prompt: "{}" }, true))),
]);
const mov = Buffer.concat([box("ftyp", text("qt  0000")), box("wide"), box("moov", tagTable({ workflow: WORKFLOW }, false))]);
const tags = element("1254c367", element("7373", Buffer.concat([simpleTag("WORKFLOW", WORKFLOW), simpleTag("ENCODER", "x")])));
const mkv = Buffer.concat([
  element("1a45dfa3", Buffer.alloc(20)),
  element("18538067", Buffer.concat([element("1549a966", Buffer.alloc(9)), element("1f43b675", Buffer.alloc(3000, 9)), tags])),
]);
const files = { mp4, mov, mkv, gif: gif(text(`workflow:${WORKFLOW}`)) };

for (const [name, bytes] of Object.entries(files)) {
  test(`${name}: the embedded workflow is found, with its accents`, async () => {
    assert.equal((await readMetadata(new Blob([bytes]))).workflow, WORKFLOW);
  });

  test(`${name}: a file cut off anywhere has no workflow or the right one, and never throws`, async () => {
    for (let size = 0; size < bytes.length; size += 13) {
      const found = await readMetadata(new Blob([bytes.subarray(0, size)]));
      if (found?.workflow && found.workflow !== WORKFLOW) assert.ok(WORKFLOW.startsWith(found.workflow));
    }
  });
}

test("the pictures of an mp4 are skipped, not read", async () => {
  const blob = new Blob([mp4]);
  let bytesRead = 0;
  const watched = { size: blob.size, slice: (a, b) => ((bytesRead += Math.min(b, blob.size) - a), blob.slice(a, b)) };
  await readMetadata(watched);
  assert.ok(bytesRead < mp4.length - 4000);
});

test("a file of another kind has no metadata", async () => {
  assert.equal(await readMetadata(new Blob([Buffer.alloc(4096, 0xff)])), null);
  assert.equal(await readMetadata(new Blob([gif(text("made by hand"))])), null);
});

test("only workflows with a node of this pack are ours", () => {
  assert.ok(isOurs({ workflow: WORKFLOW }));
  assert.ok(isOurs({ prompt: '{"3": {"class_type": "LeanVideoCombine"}}' }));
  assert.ok(!isOurs({ workflow: '{"nodes":[{"type":"KSampler"}]}' }));
  assert.ok(!isOurs(null));
});

test("a clip that a browser cannot play is shown by its preview and named by its file", () => {
  const preview = { filename: "p.mp4", subfolder: "", type: "temp" };
  const real = { filename: "clip.mov", subfolder: "video", type: "output", format: "ProRes" };
  assert.deepEqual(clipsOf({ images: [preview], lean_video_files: [real] }), [{ shown: preview, file: real, kind: "video" }]);
});

test("gif, webp and png are pictures, the rest are videos", () => {
  const kinds = ["a.GIF", "a.webp", "a.png", "a.mp4", "a.webm"].map((filename) => clipsOf({ images: [{ filename }] })[0].kind);
  assert.deepEqual(kinds, ["image", "image", "image", "video", "video"]);
});

test("an output without clips or notes is empty", () => {
  for (const output of [undefined, null, {}, { images: [null] }]) {
    assert.deepEqual(clipsOf(output), []);
    assert.equal(notesOf(output), "");
  }
  assert.equal(notesOf({ text: ["one", ["two"]] }), "one\ntwo");
});

test("names with special characters survive the address; a folder of frames has none", () => {
  const query = new URL(viewPath({ filename: "a b&c#1.mp4", subfolder: "ü" }), "http://host").searchParams;
  assert.equal(query.get("filename"), "a b&c#1.mp4");
  assert.equal(query.get("subfolder"), "ü");
  assert.equal(query.get("type"), "output");
  assert.ok(hasAddress({ filename: "a.mov" }) && !hasAddress({ filename: "frames_00001" }));
});
