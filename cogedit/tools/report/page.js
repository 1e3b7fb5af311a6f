"use strict";

// Source and edit of a player lie on each other; a native range input moves the line between them,
// so that mouse, finger and arrow keys all work. The edit leads, the source follows it.
function setUp(player) {
  const edited = player.querySelector("video.edited");
  const source = player.querySelector("video.source");
  const compare = player.querySelector(".compare");
  const play = player.querySelector(".play");
  const seek = player.querySelector(".seek");
  const shown = player.querySelector(".frame");
  const fps = Number(player.dataset.fps);
  const count = Number(player.dataset.frames);
  const videos = source ? [edited, source] : [edited];

  for (const video of videos) {
    video.controls = false;
    video.loop = false;
  }

  function frame() {
    return Math.min(count - 1, Math.floor(edited.currentTime * fps + 0.01));
  }
  function show() {
    const at = frame();
    seek.value = at;
    seek.setAttribute("aria-valuetext", `frame ${at + 1} of ${count}`);
    shown.textContent = `${at + 1} / ${count}`;
  }
  function go(to) {
    // The middle of a frame: at its edge a decoder may show the one before.
    const time = (Math.max(0, Math.min(count - 1, to)) + 0.5) / fps;
    for (const video of videos) video.currentTime = time;
  }
  function follow() {
    if (edited.paused) return;
    if (source && Math.abs(source.currentTime - edited.currentTime) > 0.75 / fps) {
      source.currentTime = edited.currentTime;
    }
    show();
    requestAnimationFrame(follow);
  }
  function label(playing) {
    play.textContent = playing ? "Pause" : "Play";
  }
  player.start = async () => {
    if (source) source.currentTime = edited.currentTime;
    try {
      await Promise.all(videos.map((video) => video.play()));
    } catch (refused) {
      videos.forEach((video) => video.pause());
    }
  };
  player.stop = () => {
    videos.forEach((video) => video.pause());
    if (source) source.currentTime = edited.currentTime;
  };

  play.addEventListener("click", () => (edited.paused ? player.start() : player.stop()));
  edited.addEventListener("play", () => { label(true); requestAnimationFrame(follow); });
  edited.addEventListener("pause", () => { if (!edited.ended) label(false); });
  edited.addEventListener("ended", () => {
    for (const video of videos) video.currentTime = 0;
    player.start();
  });
  edited.addEventListener("seeked", show);
  seek.addEventListener("input", () => { player.stop(); go(Number(seek.value)); });
  for (const [name, by] of [["back", -1], ["on", 1]]) {
    player.querySelector(`.${name}`).addEventListener("click", () => {
      player.stop();
      go(frame() + by);
    });
  }
  if (compare) {
    const move = () => {
      const at = Number(compare.value);
      player.style.setProperty("--at", `${at}%`);
      compare.setAttribute("aria-valuetext", `source on the left ${at} percent, edit on the rest`);
    };
    compare.addEventListener("input", move);
    move();
  }
  show();
}

document.documentElement.classList.add("js");
const players = [...document.querySelectorAll(".player")];
players.forEach(setUp);
const all = document.querySelector(".all");
if (all) {
  let playing = false;
  all.addEventListener("click", () => {
    playing = !playing;
    players.forEach((player) => (playing ? player.start() : player.stop()));
    all.textContent = playing ? "Pause all" : "Play all";
  });
}
