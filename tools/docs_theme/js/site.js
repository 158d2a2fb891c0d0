// The switch of versions, tables on narrow screens, and a note where the search cannot work.
(function () {
  "use strict";
  var versions = window.docsVersions || {};
  var select = document.getElementById("versions");
  if (select && Object.keys(versions).length) {
    select.textContent = "";
    Object.keys(versions).forEach(function (name) {
      select.add(new Option(name, name, false, name === select.dataset.version));
    });
    select.addEventListener("change", function () {
      var page = select.dataset.page || "index.html";
      var there = versions[select.value].indexOf(page) < 0 ? "index.html" : page;
      window.location.href = base_url + "/../" + select.value + "/" + there;
    });
  }
  document.querySelectorAll(".rst-content table").forEach(function (table) {
    var names = Array.from(table.querySelectorAll("th"), function (cell) { return cell.textContent; });
    if (names.length < 3) return;
    table.classList.add("cards");
    if (names.length > 4 && names[names.length - 1] === "Meaning") table.classList.add("parameters");
    table.querySelectorAll("tbody tr").forEach(function (row) {
      Array.from(row.cells, function (cell, n) { cell.dataset.label = names[n]; });
    });
  });
  if (window.location.protocol === "file:") {
    document.querySelectorAll("[role=search]").forEach(function (place) {
      place.textContent = "Search works if the pages come from a web server.";
    });
  }
})();
