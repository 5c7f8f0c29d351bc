// Status: the modules, what they are doing, and how many places are free, asked for while it is looked at.

import { api } from "./server.js";

const element = (id) => document.getElementById(id);

export function statusView() {
  async function refresh() {
    if (!element("status").hidden && !document.hidden) {
      try {
        show(await api("status"));
      } catch (error) {
        element("build").textContent = error.message;
      }
    }
    setTimeout(refresh, 2000);
  }
  new MutationObserver(() => element("status").hidden || api("status").then(show, () => {})).observe(element("status"), {
    attributeFilter: ["hidden"],
  });
  refresh();
}

function show(status) {
  const rows = status.modules.map((module) => {
    const row = document.createElement("tr");
    const cells = [
      ["Module", module.name],
      ["Type", module.type],
      ["Path", module.path],
      ["Status", module.status],
      ["Streams", `${module.used_slots} of ${module.total_slots}`],
    ];
    for (const [label, text] of cells) {
      const cell = document.createElement("td");
      cell.dataset.label = label;
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  });
  element("modules").replaceChildren(...rows);
  const minutes = Math.floor(status.uptime_seconds / 60);
  const version = status.build?.build_version ?? status.build?.version ?? "";
  element("build").textContent = `${status.instance || "moshi-server"} ${version}, ${status.status}, up for ${minutes} min.`;
}
