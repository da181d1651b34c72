// A client of Tomato's realtime feed for browsers: one ES module, without a build.
//
//   import { follow } from "./feed.js";
//   const stop = follow({
//     url: "https://tomato.example",
//     token: async () => "…",                          // asked for before each attempt
//     rooms: ["order:" + id],                          // what you show, the token's own room included
//     load: async (room, consistencyToken) => { … },   // over REST, with the header Consistency-Token
//     message: async (m) => { … },                     // m.event, m.room, m.payload, m.timestamp
//     state: (name, why) => { … },                     // connected, waiting, refused, ended
//   });
//
// load is called for each room when it has been joined, and again whenever messages may
// have been missed. One thing is done after the other: a message waits until load, or the
// message before, is finished. If one of them fails, the client connects again and goes
// on from there, so they may see a message twice, but none is left out. What you load may
// already contain what the next messages say: compare the version of an order.

// Codes after which the same request would fail again. All others ask for a reconnect.
const isFinal = (code) => [1002, 1003, 1007, 1008, 1009].includes(code) || (code > 4500 && code < 5000);

export function follow({ url, token, rooms, load, message, state = () => {}, minWait = 500, maxWait = 30_000, idle = 75_000 }) {
  const joined = new Set(); // the rooms that are part of the cursor
  let cursor = "";
  let attempts = 0; // without a message since
  let stopped = false;
  let socket, timer;

  async function connect() {
    let bearer;
    try {
      bearer = await token();
    } catch (err) {
      return again(0, `no token: ${err.message}`);
    }
    if (stopped) return;
    const address = new URL(url.replace(/\/$/, "") + "/v1/feed");
    address.protocol = address.protocol.replace("http", "ws");
    if (cursor) address.searchParams.set("cursor", cursor);
    else joined.clear();
    const ws = (socket = new WebSocket(address, ["bearer." + bearer]));
    let work = Promise.resolve(); // on what has come, in its order
    let failed = false, over = false, silence;

    const end = (code, reason) => {
      if (over) return;
      over = true;
      clearTimeout(silence);
      ws.onmessage = ws.onclose = null;
      ws.close();
      work.then(() => again(code, reason)); // the cursor is final by then
    };
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(end, idle, 0, `nothing came for ${idle} ms`);
    };
    const join = () => {
      for (const room of rooms) if (!joined.has(room)) ws.send(JSON.stringify({ op: "join", room }));
    };
    async function handle(m) {
      if (m.event === "feed:reset") joined.clear(), join(); // load follows, when the rooms are joined
      if (m.event === "feed:error") state("refused", `${m.code}: ${m.detail ?? ""} ${m.room ?? ""}`);
      if (m.event === "feed:joined" && rooms.includes(m.room)) {
        await load(m.room, m.consistencyToken);
        joined.add(m.room);
      } else if (!m.event.startsWith("feed:")) await message(m);
      if (m.cursor) cursor = m.cursor;
      if (m.event !== "feed:reset" && m.event !== "feed:resumed") attempts = 0;
    }
    heard();
    ws.onopen = () => (join(), state("connected"));
    ws.onclose = (e) => end(e.code, e.reason);
    ws.onmessage = (e) => {
      heard();
      work = work
        .then(() => stopped || failed || handle(JSON.parse(e.data)))
        .catch((err) => ((failed = true), end(0, err.message)));
    };
  }

  function again(code, reason) {
    if (stopped) return;
    if (isFinal(code)) return state("ended", `${code}: ${reason}`);
    const advised = Number(/retry after (\d{1,8}) ms/.exec(reason)?.[1] ?? 0);
    const wait = advised + Math.random() * Math.min(maxWait, minWait * 2 ** attempts++);
    state("waiting", `${reason || "the connection was lost"}; next attempt in ${Math.ceil(wait)} ms`);
    timer = setTimeout(connect, wait);
  }

  connect();
  return function stop() {
    stopped = true;
    clearTimeout(timer);
    socket?.close();
  };
}
