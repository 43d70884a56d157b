/** Short ways to make elements. */

export function make(tag, className = "", parent = null, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  parent?.append(element);
  return element;
}

export function svg(tag, attributes, parent = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent?.append(element);
  return element;
}

export function button(text, className, parent, onClick) {
  const element = make("button", className, parent, text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

/** Sets text only where it differs, so that selections and screen readers are left in peace. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Offers text as a file. */
export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function loadStyle(name, base) {
  const href = new URL(name, base).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  Object.assign(make("link", "", document.head), { rel: "stylesheet", href });
}
