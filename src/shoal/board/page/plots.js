// Which charts there are: those that the server tells, and one for each figure of evaluations and of ranks that runs have.

const NO_FIGURES = ["eval_loss", "eval_targets", "eval_seconds"];

const NAMES = { bpb: "bits per byte", raw_loss: "loss without averaging", macro_f1: "macro-F1", micro_f1: "micro-F1", f1: "F1", bleu: "BLEU", chrf: "chrF" };

export function plotsOf(told, chosen) {
  const evaluated = new Set();
  let ranks = 0;
  for (const { training, evaluations } of chosen.values()) {
    for (const key of evaluations.keys.keys()) if (key.startsWith("eval_") && !NO_FIGURES.includes(key)) evaluated.add(key);
    for (const key of training.keys.keys()) if (key.startsWith("ranks/")) ranks = Math.max(ranks, 1 + Number(key.split("/")[2]));
  }
  const [loss, ...others] = told.plots;
  return [loss, ...figures(evaluated), ...others, ...(ranks ? told.ranks.map((plot) => byRank(plot, ranks)) : [])];
}

// of a mixture, all corpora's figures of a kind are one chart
function figures(keys) {
  const groups = new Map();
  for (const key of [...keys].sort()) {
    const [kind, part] = key.slice("eval_".length).split("/");
    const group = groups.get(kind) ?? [];
    groups.set(kind, [...group, { name: part ?? "", key, scale: 1 }]);
  }
  return [...groups].map(([kind, lines]) => ({ title: `Held out: ${NAMES[kind] ?? kind.replaceAll("_", " ")}`, lines, from_zero: false }));
}

function byRank(plot, ranks) {
  const lines = Array.from({ length: ranks }, (_, rank) => ({ ...plot.lines[0], name: `rank ${rank}`, key: `ranks/${plot.lines[0].key}/${rank}` }));
  return { ...plot, lines, colored: true };
}
