// Speak: text to sound that plays as it streams, each word marked while it is heard.

import { Player } from "./audio.js";
import { decode, encode } from "./msgpack.js";
import { api, connect } from "./server.js";

const element = (id) => document.getElementById(id);

export function speakView(module, notice) {
  const button = element("say");
  let socket = null;

  async function listVoices() {
    const { voices = [], default: usual } = (await api("voices")).find((each) => each.path === module.path) ?? {};
    element("voice").replaceChildren(...voices.map((name) => new Option(name, name, name === usual, name === usual)));
    element("voice").parentElement.hidden = !voices.length;
  }
  listVoices().catch(notice);

  button.onclick = () => {
    if (socket) return socket.close(1000);
    const text = element("text").value.trim();
    if (!text) return notice("Write something first.");
    notice("");
    element("spoken").replaceChildren();
    const player = new Player();
    const words = [];
    const asked = performance.now();
    let over = false;
    button.textContent = "Stop";

    function onmessage(buffer) {
      const message = decode(buffer);
      switch (message.type) {
        case "Ready":
          socket.send(encode({ type: "Text", text }));
          socket.send(encode({ type: "Eos" }));
          return;
        case "Audio":
          if (player.begin === null) element("first-sound").textContent = `${Math.round(performance.now() - asked)} ms`;
          player.play(Float32Array.from(message.pcm));
          return;
        case "Text": {
          const span = document.createElement("span");
          span.className = "word ahead";
          span.textContent = message.text;
          words.push({ span, start: message.start_s, stop: message.stop_s });
          element("spoken").append(span, " ");
        }
      }
    }

    function light() {
      for (const { span, start, stop } of words) {
        span.classList.toggle("ahead", player.position < start);
        span.classList.toggle("now", player.position >= start && player.position < stop);
      }
      if (!over || !player.idle) return requestAnimationFrame(light);
      for (const { span } of words) span.className = "word";
      player.close();
      button.textContent = "Speak";
      socket = null;
    }

    socket = connect(module, { format: "PcmMessagePack", voice: element("voice").value }, {
      onmessage,
      onend(why) {
        over = true;
        if (why) notice(why);
      },
    }, module.type === "Tts" ? `${module.path}_streaming` : module.path);
    requestAnimationFrame(light);
  };
}
