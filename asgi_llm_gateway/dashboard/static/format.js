// Amounts, times and spans as people read them, in the browser's language and time zone.

const NONE = "–";
const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const money = new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", maximumFractionDigits: 9 });
const cents = new Intl.NumberFormat(undefined, { style: "currency", currency: "USD" });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const dateTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dayHour = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

const absent = (value) => value === null || value === undefined;

/** US dollars to four digits that count, cents above a hundred. */
export function usd(value) {
  if (absent(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100) return cents.format(value);
  return money.format(Number(size >= 1 ? value.toFixed(4) : value.toPrecision(4)));
}

/** US dollars with all their decimals: what one call cost. */
export const usdExact = (value) => (absent(value) ? NONE : money.format(value));

/** A limit in US dollars, or that there is none. */
export const usdLimit = (value) => (absent(value) ? "no limit" : usd(value));

/** A count. */
export const count = (value) => (absent(value) ? NONE : whole.format(value));

/** A count where there is little room. */
export const short = (value) => (absent(value) ? NONE : compact.format(value));

/** A limit that is a count. */
export const limit = (value) => (absent(value) ? "no limit" : whole.format(value));

/** A part of a whole. */
export const share = (part, all) => percent.format(all ? part / all : 0);

/** Milliseconds, in seconds where there are many. */
export function ms(value) {
  if (absent(value)) return NONE;
  if (value >= 10_000) return `${whole.format(Number((value / 1000).toFixed(1)))} s`;
  return `${whole.format(Number(value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)))} ms`;
}

/** Milliseconds at an axis. */
export const msAxis = (value) => (value >= 1000 ? `${short(value / 1000)} s` : `${short(value)} ms`);

/** A point in time, from Unix seconds. */
export const moment = (seconds) => (absent(seconds) ? NONE : dateTime.format(seconds * 1000));

/** The time of the day. */
export const timeOfDay = (seconds) => (absent(seconds) ? NONE : clock.format(seconds * 1000));

/** A point in time, short. */
export const point = (seconds) => dayHour.format(seconds * 1000);

/** A number as an input takes it: never 1e-9. */
export const plain = (value) => (absent(value) ? "" : value.toFixed(9).replace(/\.?0+$/, ""));

/** Words, or a dash. */
export const text = (value) => (absent(value) || value === "" ? NONE : String(value));
