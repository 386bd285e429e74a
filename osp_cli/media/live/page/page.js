"use strict";

const at = (id) => document.getElementById(id);
const stream = at("stream");
const state = at("state");
const NAMES = {
  chunk: "chunk", seconds: "time", fps: "fps", realtime_factor: "speed", drift: "drift",
  queue: "queue", rebuffers: "rebuffers", viewers: "viewers", skipped: "skipped",
};
let failures = 0;
let over = false;

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

function words(key, value) {
  if (key === "seconds") return clock(value);
  if (key === "realtime_factor") return `${value.toFixed(2)}\u00d7`;
  if (key === "drift") return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);
  if (typeof value === "number" && !Number.isInteger(value)) return value.toFixed(1);
  return String(value);
}

function showState(name, text) {
  if (state.textContent === text) return;
  state.dataset.state = name;
  state.textContent = text;
}

function showNumbers(status) {
  const rows = [];
  for (const [key, name] of Object.entries(NAMES)) {
    const value = status[key];
    if (value === undefined || value === null || (key === "skipped" && !value)) continue;
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const number = document.createElement("dd");
    term.textContent = name;
    number.textContent = words(key, value);
    row.append(term, number);
    rows.push(row);
  }
  at("numbers").replaceChildren(...rows);
  const prompt = at("prompt");
  prompt.hidden = !status.prompt;
  prompt.textContent = status.prompt || "";
}

function end() {
  over = true;
  showState("ended", "the stream has ended");
  for (const control of at("steer").elements) control.disabled = true;
}

async function ask() {
  try {
    const answer = await fetch("status", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const status = await answer.json();
    failures = 0;
    showNumbers(status);
    if (status.ended) return end();
    showState(status.frames_shown ? "live" : "waiting", status.frames_shown ? "live" : "the first picture is being made");
  } catch {
    failures += 1;
    if (failures >= 3) return end();
    showState("waiting", "no answer");
  }
  setTimeout(ask, 1000);
}

// The connection of the picture may break while the stream itself goes on.
stream.addEventListener("error", () => {
  if (!over) setTimeout(() => { stream.src = `stream?${Date.now()}`; }, 1000);
});

// After the page itself: a picture that never ends would keep it loading for ever.
addEventListener("load", () => { stream.src = "stream"; });

at("steer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const line = at("line").value.trim();
  if (!line) return;
  at("line").value = "";
  const item = document.createElement("li");
  item.textContent = line;
  at("said").prepend(item);
  let problem = "";
  try {
    const answer = await fetch("steer", {
      method: "POST", body: line, headers: { "Content-Type": "text/plain; charset=utf-8" },
    });
    if (!answer.ok) problem = (await answer.json()).error || answer.statusText;
  } catch {
    problem = "the stream does not answer";
  }
  item.className = problem ? "refused" : "taken";
  if (problem) {
    const reason = document.createElement("small");
    reason.textContent = problem;
    item.append(reason);
  }
});

at("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else at("stage").requestFullscreen();
});

at("keep").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  canvas.width = stream.naturalWidth;
  canvas.height = stream.naturalHeight;
  if (!canvas.width) return;
  canvas.getContext("2d").drawImage(stream, 0, 0);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `osp-${clock(performance.now() / 1000).replaceAll(":", "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
});

ask();
