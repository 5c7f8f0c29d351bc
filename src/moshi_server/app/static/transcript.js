// Words with times as text and subtitles; it knows no page.

/** Words as subtitle cues: cut at pauses of 0.8 s, at 84 characters and at 7 s. */
export function cues(words) {
  const made = [];
  for (const word of words) {
    const last = made.at(-1);
    const fits = last && word.start - last.stop < 0.8 && last.text.length + word.text.length < 84 && word.stop - last.start < 7;
    if (fits) {
      last.text += ` ${word.text}`;
      last.stop = word.stop;
    } else {
      made.push({ start: word.start, stop: word.stop, text: word.text });
    }
  }
  return made;
}

export function toText(words) {
  return words.map((word) => word.text).join(" ") + "\n";
}

export function toSrt(words) {
  return cues(words)
    .map((cue, index) => `${index + 1}\n${clock(cue.start, ",")} --> ${clock(cue.stop, ",")}\n${cue.text}\n`)
    .join("\n");
}

export function toVtt(words) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const blocks = cues(words).map((cue) => `${clock(cue.start, ".")} --> ${clock(cue.stop, ".")}\n${escaped(cue.text)}\n`);
  return ["WEBVTT\n", ...blocks].join("\n");
}

function clock(seconds, point) {
  const ms = Math.max(0, Math.round(seconds * 1000));
  const pad = (value, digits = 2) => String(value).padStart(digits, "0");
  return `${pad(Math.floor(ms / 3600000))}:${pad(Math.floor(ms / 60000) % 60)}:${pad(Math.floor(ms / 1000) % 60)}${point}${pad(ms % 1000, 3)}`;
}
