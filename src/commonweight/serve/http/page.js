// What both pages have in common: elements, the server, its key. `state` and `load` are each page's own.
const $ = id => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...children);
  return e;
};

async function call(path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (state.key) headers.authorization = "Bearer " + state.key;
  const got = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (got.ok) return got;
  let told = `${got.status} ${got.statusText}`;
  try { told = (await got.json()).error.message; } catch { /* not in the form of this server: a proxy, perhaps */ }
  throw Object.assign(new Error(told), { status: got.status });
}

async function names(what) {
  const { data } = await (await call("v1/models")).json();
  const plain = data.filter(m => m.parent === null && m.id === m.root || m.id === "base");
  state.base = (plain.find(m => m.id !== "base") || plain[0] || {}).id || "";
  state.names = [...new Set(data.map(m => m.id))].filter(n => n === "base" || n !== state.base);
  $("model").textContent = state.base || "commonweight";
  const tenants = state.names.filter(n => n !== "base").length;
  $("many").textContent = `${tenants.toLocaleString("en")} ${tenants === 1 ? "tenant" : "tenants"}`;
  document.title = `${state.base || "commonweight"} \u00b7 ${what}`;
  $("problem").textContent = "";
}

function askKey(why) {
  if ($("ask-key").open) return;
  $("key").value = state.key;
  $("problem").textContent = why;
  $("ask-key").showModal();
}
$("keys").addEventListener("click", () => askKey(""));
$("no-key").addEventListener("click", () => $("ask-key").close());
$("key-form").addEventListener("submit", () => { state.key = $("key").value.trim(); load(); });
