/** Finding nodes of the graph by the ids that the server uses. */

/** The node with an execution id: "12", or "5:12" for node 12 inside subgraph node 5. */
export function nodeOf(app, id) {
  return pathOf(app, id).at(-1) ?? null;
}

/** The nodes on the way to an execution id, the outermost first; as far as they are known. */
export function pathOf(app, id) {
  const path = [];
  if (id === null || id === undefined) return path;
  let graph = app.rootGraph ?? app.graph;
  for (const part of String(id).split(":")) {
    const node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part));
    if (!node) return path;
    path.push(node);
    graph = node.subgraph;
    if (!graph) break; // a node that was made while it ran belongs to the one on the canvas
  }
  return path;
}

/** Moves the view so that the node is in its middle, in the subgraph that holds it, and selects it. */
export function goTo(app, node) {
  const { canvas } = app;
  if (!canvas || !node) return;
  if (node.graph && canvas.graph !== node.graph) canvas.setGraph?.(node.graph);
  canvas.centerOnNode?.(node);
  canvas.selectNode?.(node, false);
  canvas.setDirty?.(true, true);
}
