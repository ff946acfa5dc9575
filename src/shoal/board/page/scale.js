// From values to places and back, and where ticks belong.

export class Scale {
  // `from`, `to`: values; `start`, `end`: pixels
  constructor(from, to, start, end, log = false) {
    this.log = log;
    this.ends = [from, to];
    [this.from, this.to] = log ? [Math.log10(from), Math.log10(to)] : [from, to];
    [this.start, this.end] = [start, end];
    this.slope = (end - start) / (this.to - this.from || 1);
  }

  at(value) {
    return this.start + ((this.log ? Math.log10(value) : value) - this.from) * this.slope;
  }

  value(place) {
    const value = this.from + (place - this.start) / this.slope;
    return this.log ? 10 ** value : value;
  }

  ticks(most) {
    return this.log ? logTicks(this.from, this.to, most) : evenTicks(this.from, this.to, most);
  }
}

// however near each other, or large, the ends are: `most` ticks, and one
function evenTicks(from, to, most) {
  const least = (to - from) / most;
  if (!(least > 0)) return [from];
  const unit = 10 ** Math.floor(Math.log10(least));
  const step = unit * [1, 2, 5, 10].find((times) => times * unit >= least);
  const ticks = [];
  for (let number = Math.ceil(from / step); number * step <= to + step * 1e-9 && ticks.length <= most; number += 1) ticks.push(number * step);
  return ticks;
}

function logTicks(from, to, most) {
  const ticks = [];
  const decades = to - from;
  const leading = decades > most ? [1] : decades > 1.5 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  for (let power = Math.floor(from); power <= Math.ceil(to); power += Math.max(1, Math.ceil(decades / most))) {
    for (const lead of leading) {
      const place = power + Math.log10(lead);
      if (place >= from && place <= to) ticks.push(10 ** place);
    }
  }
  return ticks.length > 1 ? ticks : evenTicks(10 ** from, 10 ** to, most);
}

// ticks of seconds stand at whole minutes and hours
export function timeTicks(from, to, most) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const step = steps.find((one) => (to - from) / one <= most) ?? 86400 * Math.ceil((to - from) / most / 86400);
  const ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to && ticks.length <= most; tick += step) ticks.push(tick);
  return ticks;
}
