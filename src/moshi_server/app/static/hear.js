// Transcribe: the microphone or a file to words with times, as they come.

import { decodeFile, FRAME, loudness, microphone, RATE } from "./audio.js";
import { decode, encode } from "./msgpack.js";
import { connect } from "./server.js";
import { toSrt, toText, toVtt } from "./transcript.js";

const AHEAD = 2 ** 20; // bytes that may wait in the socket
const element = (id) => document.getElementById(id);

export function hearView(module, notice) {
  let words = [];
  let paragraph = null;
  let stream = null; // what runs now
  let base = 0; // where this stream's clock begins in the transcript, s

  function addWord({ text, start_time }) {
    text = text.trim();
    if (!text) return;
    closeWord(start_time);
    const start = base + start_time;
    const word = { text, start, stop: start, open: true };
    words.push(word);
    if (!paragraph) {
      paragraph = document.createElement("p");
      const stamp = document.createElement("time");
      stamp.textContent = `${Math.floor(start / 60)}:${(start % 60).toFixed(1).padStart(4, "0")}`;
      paragraph.append(stamp, " ");
      element("transcript").append(paragraph);
    }
    const span = document.createElement("span");
    span.className = "word";
    span.textContent = text;
    span.title = `${start.toFixed(2)} s`;
    word.span = span;
    paragraph.append(span, " ");
    element("transcript").scrollTop = element("transcript").scrollHeight;
  }

  function closeWord(stop) {
    const word = words.at(-1);
    if (!word?.open) return;
    word.open = false;
    word.stop = Math.max(word.start, base + stop);
    word.span.title = `${word.start.toFixed(2)} to ${word.stop.toFixed(2)} s`;
  }

  function onmessage(buffer) {
    const message = decode(buffer);
    switch (message.type) {
      case "Ready": return stream.ready();
      case "Word": return addWord(message);
      case "EndWord": return closeWord(message.stop_time);
      case "Step": return stream.stepped(message);
      case "Turn":
        if (message.kind === "end") paragraph = null;
        return undefined;
      case "Flush": return stream.socket.close(1000);
      case "Error": stream.error = message.message;
    }
  }

  /** Open a stream: `begin(send)` is called when a place is held, and `end()` once it is over. */
  function open(begin, end) {
    notice("");
    paragraph = null;
    base = Math.ceil(words.at(-1)?.stop ?? 0);
    const sentAt = [];
    let over = false;
    stream = {
      ready: () => begin({
        frame(pcm) {
          if (over) return;
          for (let i = 0; i < pcm.length; i += FRAME) sentAt.push(performance.now());
          stream.socket.send(encode({ type: "Audio", pcm }));
        },
        flush: () => over || stream.socket.send(encode({ type: "Flush" })),
        waiting: () => stream.socket.bufferedAmount,
        over: () => over,
      }),
      stepped(step) {
        element("pause").value = step.prs[2] ?? step.prs[0] ?? 0;
        element("file-progress").value = step.step_idx / (stream.frames || Infinity);
        const sent = sentAt[step.step_idx - 1];
        if (sent && !stream.frames) element("latency").textContent = `${Math.round(performance.now() - sent)} ms`;
      },
    };
    stream.socket = connect(module, { turns: "1" }, {
      onmessage,
      onend(why) {
        over = true;
        stream = null;
        end();
        if (why) notice(why);
      },
    });
  }

  const mic = element("mic");
  const resting = mic.textContent;
  let stopMic = null;

  function micEnded() {
    stopMic?.();
    stopMic = null;
    mic.textContent = resting;
    mic.disabled = false;
    element("level").value = element("pause").value = 0;
  }

  mic.onclick = async () => {
    if (stopMic) { // the last words are still to come
      stopMic();
      stopMic = null;
      mic.disabled = true;
      stream?.send.flush();
      return;
    }
    if (stream) return;
    mic.disabled = true;
    let sink = null;
    const early = []; // heard before there is a place
    try {
      stopMic = await microphone((frame) => {
        element("level").value = loudness(frame);
        if (sink) sink.frame(frame);
        else early.push(frame);
      });
    } catch (error) {
      notice(error);
      micEnded();
      return;
    }
    open((send) => {
      sink = stream.send = send;
      for (const frame of early) send.frame(frame);
      mic.disabled = false;
      mic.textContent = "Stop";
    }, micEnded);
  };

  async function hearFile(file) {
    if (stream || stopMic) return notice("Stop the microphone first.");
    let pcm;
    try {
      pcm = await decodeFile(file);
    } catch (error) {
      return notice(error);
    }
    const progress = element("file-progress");
    progress.hidden = false;
    mic.disabled = true;
    open(async (send) => {
      stream.frames = Math.ceil(pcm.length / FRAME);
      for (let at = 0; at < pcm.length && !send.over(); at += RATE) {
        while (send.waiting() > AHEAD && !send.over()) await new Promise((done) => setTimeout(done, 20));
        send.frame(pcm.slice(at, at + RATE));
      }
      send.flush();
    }, () => {
      closeWord(pcm.length / RATE);
      progress.hidden = true;
      micEnded();
    });
  }

  element("file").onchange = (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) hearFile(file);
  };
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  document.ondragleave = () => document.body.classList.remove("dropping");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) hearFile(file);
  };

  element("copy").onclick = async () => {
    await navigator.clipboard.writeText(toText(words));
    element("copy").textContent = "Copied";
    setTimeout(() => (element("copy").textContent = "Copy"), 1500);
  };
  for (const [id, make, type] of [["txt", toText, "text/plain"], ["srt", toSrt, "application/x-subrip"], ["vtt", toVtt, "text/vtt"]]) {
    element(`save-${id}`).onclick = () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([make(words)], { type }));
      link.download = `transcript.${id}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
  }
  element("clear").onclick = () => {
    words = [];
    paragraph = null;
    element("transcript").replaceChildren();
  };
}
