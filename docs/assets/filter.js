// Boxes above the table of methods: words to find, and a choice for each column of few different cells. No network.
document.addEventListener("DOMContentLoaded", () => {
  const table = [...document.querySelectorAll("table")].find((t) => {
    const heads = [...t.querySelectorAll("thead th")].map((h) => h.textContent.trim());
    return heads[0] === "method" && heads[1] === "family";
  });
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const text = (row, i) => row.cells[i].textContent.trim();
  const bar = document.createElement("div");
  bar.className = "filter";
  const words = document.createElement("input");
  words.type = "search";
  words.placeholder = "find: lora, 2106, ...";
  words.setAttribute("aria-label", "find methods");
  bar.append(words);
  const chosen = [];
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const values = [...new Set(rows.map((row) => text(row, i)))].sort();
    if (i === 0 || values.length < 2 || values.length > 16) return;
    const select = document.createElement("select");
    select.setAttribute("aria-label", head.textContent.trim());
    select.add(new Option(`${head.textContent.trim()}: all`, ""));
    values.forEach((v) => select.add(new Option(v, v)));
    chosen.push([select, i]);
    bar.append(select);
  });
  const count = document.createElement("span");
  bar.append(count);
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    rows.forEach((row) => {
      const all = row.textContent.toLowerCase();
      const fits = wanted.every((w) => all.includes(w)) && chosen.every(([s, i]) => !s.value || text(row, i) === s.value);
      row.hidden = !fits;
      n += fits;
    });
    count.textContent = `${n} of ${rows.length}`;
  };
  bar.addEventListener("input", show);
  const wrapper = table.closest(".md-typeset__scrollwrap") || table;
  wrapper.before(bar);
  show();
});
