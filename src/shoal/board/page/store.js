// What the page knows of the chosen runs. Only what is new travels: a run's rows stay the same rows while it grows.

export class Rows {
  constructor() {
    this.clear();
  }

  clear() {
    this.perRow = 1;
    this.records = 0;
    this.length = 0;
    this.keys = new Map();
    this.version = (this.version ?? 0) + 1;
  }

  // `news`: rows from `first` on, which replace those that were there
  take(news) {
    if (news.first === 0 || news.per_row !== this.perRow) this.clear();
    const told = Object.entries(news.keys);
    const fresh = told.length ? told[0][1].mean.length : 0;
    if (!fresh) return;
    this.perRow = news.per_row;
    this.records = news.records;
    this.length = news.first + fresh;
    this.version += 1;
    for (const [key, columns] of told) {
      const kept = this.keys.get(key) ?? { mean: [], low: [], high: [] };
      this.keys.set(key, kept);
      for (const [name, values] of Object.entries(columns)) {
        kept[name].length = Math.min(kept[name].length, news.first);
        while (kept[name].length < news.first) kept[name].push(null);
        for (const value of values) kept[name].push(value);
      }
    }
  }
}

export class Store {
  constructor() {
    this.runs = [];
    this.chosen = new Map();
  }

  choose(ids) {
    for (const id of this.chosen.keys()) if (!ids.includes(id)) this.chosen.delete(id);
    for (const id of ids) {
      if (!this.chosen.has(id)) this.chosen.set(id, { generation: -1, training: new Rows(), evaluations: new Rows(), close: null });
    }
  }

  // returns whether the server is still reading
  async ask() {
    const known = {};
    for (const [id, one] of this.chosen) {
      known[id] = one.generation < 0 ? null : {
        generation: one.generation,
        training: [one.training.perRow, one.training.records],
        evaluations: [one.evaluations.perRow, one.evaluations.records],
      };
    }
    const answer = await fetch("/api/news", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(known),
    });
    if (!answer.ok) throw new Error(`the board answers ${answer.status}`);
    const told = await answer.json();
    this.runs = told.runs;
    this.told = told.told;
    for (const [id, news] of Object.entries(told.news)) {
      const one = this.chosen.get(id);
      if (!one) continue;
      if (one.generation !== news.generation) {
        one.training.clear();
        one.evaluations.clear();
        one.close = null;
      }
      one.generation = news.generation;
      one.training.take(news.training);
      one.evaluations.take(news.evaluations);
    }
    return told.reading;
  }

  // the part of each run that is looked at closely, where its rows are too coarse for it
  async lookClosely(axis, range) {
    const asked = [...this.chosen].map(async ([id, one]) => {
      if (range === null) {
        one.close = null;
        return;
      }
      if (one.training.perRow === 1) return;
      const mark = `${axis} ${range} ${one.training.records}`;
      if (one.close?.mark === mark) return;
      const query = new URLSearchParams({ run: id, axis, start: range[0], end: range[1] });
      const answer = await fetch(`/api/part?${query}`);
      if (!answer.ok) return;
      const told = await answer.json();
      if (told.generation !== one.generation) return;
      const rows = new Rows();
      rows.take({ ...told.training, first: 0, per_row: told.training.per_row });
      one.close = { mark, rows };
    });
    await Promise.all(asked);
  }
}
