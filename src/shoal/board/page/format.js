// Numbers, times and ages, for people.

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function figure(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return Number(value.toPrecision(digits)).toExponential();
  if (Number.isInteger(value) && size < 1e5) return value.toLocaleString("en-US");
  return short(value, digits);
}

// 12345678 is 12.35M; below `least` there is no prefix
export function short(value, digits = 4, least = 1e4) {
  const size = Math.abs(value);
  for (const [unit, name] of PREFIXES) if (size >= unit && size >= least) return trim(value / unit, digits) + name;
  return trim(value, digits);
}

function trim(value, digits) {
  return String(Number(value.toPrecision(digits)));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  return parts([hours, "h"], [minutes, "min"], [hours ? 0 : whole % 60, "s"]);
}

function parts(...all) {
  return all.filter(([count]) => count).map(([count, unit]) => `${count} ${unit}`).join(" ");
}

export function age(moment) {
  const seconds = Date.now() / 1000 - moment;
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(moment * 1000).toISOString().slice(0, 10);
}

export function onAxis(axis, value) {
  if (axis === "seconds") return duration(value);
  return axis === "step" ? Math.round(value).toLocaleString("en-US") : short(value);
}
