/* Describes elements as plain objects, and patches the document so that only differences are touched. Elements with a
   key are kept wherever they move. The elements with the focus and the selection are not moved; the others move around
   them. All text is cleaned here, so no name from Qarnot or a DAG can hide or reverse what is beside it. */

const SVG = "http://www.w3.org/2000/svg";
const KEY = Symbol("key");
const PROPS = Symbol("props");
const PROPERTIES = new Set(["value", "checked"]);

/* Control characters become their pictures, and characters that only change the direction become U+FFFD. */
export function clean(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/g,
      (one, at, whole) => (isPaired(whole, at) ? one : "\ufffd"));
}

function isPaired(text, at) {
  const code = text.charCodeAt(at);
  if (code >= 0xd800 && code <= 0xdbff) return /[\udc00-\udfff]/.test(text[at + 1] || "");
  return code >= 0xdc00 && code <= 0xdfff && /[\ud800-\udbff]/.test(text[at - 1] || "");
}

/* An element. `key` names it among its siblings; `opaque` leaves its children to others. */
export function h(tag, props, ...children) {
  const { key, opaque, ...rest } = props || {};
  return { tag, key, opaque: Boolean(opaque), props: rest, children: flat(children, []) };
}

/* Lists in lists as one, without what is no child. */
function flat(children, into) {
  for (const child of children) {
    if (Array.isArray(child)) flat(child, into);
    else if (child !== null && child !== undefined && child !== false && child !== "") into.push(child);
  }
  return into;
}

/* Give *parent* these children. */
export function patch(parent, children) {
  const wanted = flat([children], []);
  const keyed = new Map();
  const free = [];
  for (const node of parent.childNodes) {
    if (node[KEY] === undefined || keyed.has(node[KEY])) free.push(node);
    else keyed.set(node[KEY], node);
  }
  const kept = new Set();
  let next = 0;
  const nodes = wanted.map((child) => {
    let node;
    if (child.key !== undefined) {
      node = keyed.get(child.key);
      if (node && (kept.has(node) || !isLike(node, child))) node = undefined;
    } else {
      let at = next;
      while (at < free.length && (free[at][KEY] !== undefined || !isLike(free[at], child))) at += 1;
      node = free[at];
      if (node) next = at + 1;
    }
    if (!node) return create(parent, child);
    kept.add(node);
    update(node, child);
    return node;
  });
  for (const node of [...keyed.values(), ...free]) if (!kept.has(node)) node.remove();
  place(parent, nodes);
}

const isElement = (child) => typeof child === "object";
const isLike = (node, child) => (isElement(child) ? node.localName === child.tag : node.nodeType === Node.TEXT_NODE);

function create(parent, child) {
  if (!isElement(child)) return document.createTextNode(clean(child));
  const inSvg = child.tag === "svg" || parent.namespaceURI === SVG;
  const node = inSvg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
  if (child.key !== undefined) node[KEY] = child.key;
  update(node, child);
  return node;
}

function update(node, child) {
  if (!isElement(child)) {
    const text = clean(child);
    if (node.data !== text) node.data = text;
    return;
  }
  if (!child.opaque) patch(node, child.children);
  const before = node[PROPS] || {};
  for (const name of Object.keys(before)) if (!(name in child.props)) setProp(node, name, null);
  for (const [name, value] of Object.entries(child.props)) if (!isSame(before[name], value)) setProp(node, name, value);
  node[PROPS] = child.props;
}

const isSame = (a, b) => a === b || (isStyle(a) && isStyle(b) && JSON.stringify(a) === JSON.stringify(b));
const isStyle = (value) => typeof value === "object" && value !== null;

function setProp(node, name, value) {
  if (name === "style") {
    node.removeAttribute("style"); // the page's policy forbids the attribute, and allows the properties
    for (const [property, text] of Object.entries(value || {})) node.style.setProperty(property, text);
  } else if (PROPERTIES.has(name)) {
    if (node[name] !== value) node[name] = value ?? "";
  } else if (value === null || value === undefined || value === false) {
    node.removeAttribute(name);
  } else {
    const plain = value === true ? "" : String(value);
    node.setAttribute(name, /^(href|data-.*)$/.test(name) ? plain : clean(plain));
  }
}

/* Put *nodes* in order with few moves. */
function place(parent, nodes) {
  const at = new Map([...parent.childNodes].map((node, index) => [node, index]));
  const known = nodes.filter((node) => at.has(node));
  const isInOrder = known.every((node, i) => i === 0 || at.get(known[i - 1]) < at.get(node));
  const stay = new Set(isInOrder ? known : heaviestRun(known, known.map((node) => at.get(node)), known.map((node) => (isHeld(node) ? known.length : 1))));
  let anchor = null;
  for (const node of [...nodes].reverse()) {
    if (!stay.has(node) && (node.parentNode !== parent || node.nextSibling !== anchor)) parent.insertBefore(node, anchor);
    anchor = node;
  }
}

/* Whether moving *node* would lose the focus or a selection. */
function isHeld(node) {
  if (node.contains(document.activeElement)) return true;
  const selection = document.getSelection();
  return Boolean(selection && !selection.isCollapsed && (node.contains(selection.anchorNode) || node.contains(selection.focusNode)));
}

/* The members of *list* that need not move: those of the increasing run of *places* with the greatest weight. */
export function heaviestRun(list, places, weights) {
  const best = [];
  const before = [];
  let last = -1;
  for (let i = 0; i < list.length; i += 1) {
    best[i] = 0;
    before[i] = -1;
    for (let j = 0; j < i; j += 1) if (places[j] < places[i] && best[j] > best[i]) [best[i], before[i]] = [best[j], j];
    best[i] += weights[i];
    if (last < 0 || best[i] > best[last]) last = i;
  }
  const run = [];
  for (; last >= 0; last = before[last]) run.push(list[last]);
  return run;
}
