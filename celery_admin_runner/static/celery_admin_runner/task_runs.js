'use strict';
// Let the runs in a page follow what becomes of them: by websocket where the page names one, and
// by asking again and again while there is none. What is shown is HTML of the page's own
// templates. The page itself is what this script knows: other scripts may add and remove rows.
if (!window.celeryTaskRuns) {
    window.celeryTaskRuns = true;

    //: Milliseconds between two questions: at first, at most while something is unfinished, at
    //: most else, and at most after errors; after which one is given up.
    const SOON = 1000;
    const LATER = 10000;
    const LATE = 30000;
    const LATEST = 60000;
    const GIVEN_UP = 20000;
    const SLOWER = 1.5;
    //: So long a run is shown before it counts as seen, and after it ended.
    const SEEN_AFTER = 1000;
    const SHOWN_FOR = 30000;
    //: After so long without an answer the same runs are marked as seen once more, so often.
    const MARK_AGAIN = 10000;
    const MARKS_MAX = 5;
    //: So many questions to mark runs are refused before it is given up.
    const REFUSALS_MAX = 30;
    //: A hidden page keeps its websocket for so long; a silent one is given up after so long,
    //: and one that lasted so long was a good one.
    const HIDDEN_FOR = 60000;
    const SILENT_FOR = 10000;
    const GOOD_AFTER = 10000;
    //: One that has said nothing for so long is asked: a net may go without a word. And when one
    //: is lost, all pages may have lost theirs: so long it may be until it is tried again.
    const QUIET_FOR = 45000;
    const SPREAD = 5000;
    //: The server takes so many ids at once; many servers take no longer address.
    const IDS_MAX = 200;
    const ADDRESS_MAX = 3500;
    //: How long a run takes to leave, and an announcement to be read.
    const LEAVING = 400;
    const NEWS_FOR = 8000;
    const TOGETHER = 300;

    const all = (selector, root = document) => [...root.querySelectorAll(selector)];
    const config = () => document.querySelector('[data-task-runs-config]')?.dataset ?? {};
    const now = () => performance.now();

    let hasEnded = false;
    let errors = 0;

    // ---- The page ----

    //: When the page first showed the end of a run, by its id.
    const endedAt = new Map();
    //: Rows that are on their way out of a list, and their timers.
    const leaving = new Map();
    //: Rows of runs that are no more: nothing is asked of them.
    const gone = new WeakSet();
    //: Rows that this script has added.
    const own = new WeakSet();

    const idOf = row => Number(row.dataset.taskRun);
    const isFinished = row => 'finished' in row.dataset;
    const isSeen = row => 'seen' in row.dataset;
    const lists = () => all('[data-task-runs]');
    const rows = () => all('[data-task-run]').filter(row => !leaving.has(row));
    const rowsOf = id => rows().filter(row => idOf(row) === id);
    const isListed = row => row.closest('[data-task-runs]') !== null;
    const isFollowed = row => !isListed(row) && !isFinished(row) && !gone.has(row);
    // The runs that are asked for by name: those in no list, while they are unfinished.
    const followed = () => [...new Set(rows().filter(isFollowed).map(idOf))];
    const isUnfinished = () => rows().some(row => !isFinished(row) && !gone.has(row));
    const hasWork = () => lists().length > 0 || rows().some(isFollowed);

    const parsed = html => {
        const template = document.createElement('template');
        template.innerHTML = html;
        return template.content;
    };

    // Make a node like another, and touch nothing that is the same: focus and animations stay.
    const liken = (node, source) => {
        if (node.nodeName !== source.nodeName) {
            node.replaceWith(source);
            return;
        }
        if (node.nodeType !== Node.ELEMENT_NODE) {
            if (node.nodeValue !== source.nodeValue) {
                node.nodeValue = source.nodeValue;
            }
            return;
        }
        for (const {name} of [...node.attributes]) {
            if (!source.hasAttribute(name)) {
                node.removeAttribute(name);
            }
        }
        for (const {name, value} of source.attributes) {
            if (node.getAttribute(name) !== value) {
                node.setAttribute(name, value);
            }
        }
        likenContent(node, source);
    };
    const likenContent = (node, source) => {
        const children = [...node.childNodes];
        const wanted = [...source.childNodes];
        children.slice(wanted.length).forEach(child => child.remove());
        wanted.forEach((child, number) => {
            if (number < children.length) {
                liken(children[number], child);
            } else {
                node.append(child);
            }
        });
    };

    const show = (element, isShown) => {
        if (element && element.hidden === isShown) {
            element.hidden = !isShown;
        }
    };
    const write = (element, text) => {
        if (element && element.textContent !== text) {
            element.textContent = text;
        }
    };

    // Say what can't be done: in each list, else beside the first run.
    const note = text => {
        const inLists = all('[data-task-runs] [data-task-runs-note]');
        const shown = inLists.length ? inLists : all('[data-task-runs-note]').slice(0, 1);
        for (const element of all('[data-task-runs-note]')) {
            const isShown = text !== '' && shown.includes(element);
            write(element, isShown ? text : '');
            show(element, isShown);
        }
    };

    // Tell who does not see the page how runs go on: their states, not each step.
    const news = new Map();
    let newsTimer = 0;
    const newsRegion = () => {
        let region = document.querySelector('[data-task-runs-news]');
        if (!region && document.body) {
            region = document.createElement('div');
            region.className = 'task-runs-news';
            region.dataset.taskRunsNews = '';
            region.setAttribute('role', 'status');
            document.body.append(region);
        }
        return region;
    };
    const announce = run => {
        news.set(run.id, `${run.label}: ${run.state_label}`);
        clearTimeout(newsTimer);
        newsTimer = setTimeout(() => {
            write(newsRegion(), [...news.values()].join('. '));
            news.clear();
            newsTimer = setTimeout(() => write(newsRegion(), ''), NEWS_FOR);
        }, TOGETHER);
    };

    const tidy = () => {
        for (const list of lists()) {
            const hasRows = all('[data-task-run]', list).length > 0;
            show(list.querySelector('[data-task-runs-list]'), hasRows);
            show(list.querySelector('[data-task-runs-empty]'), !hasRows);
        }
    };

    // Take a row out of its list: one that has ended not before it was there for its time, and
    // none on which somebody stands.
    const leave = row => {
        const item = row.closest('li') ?? row;
        const go = () => {
            if (item.matches(':focus-within, :hover')) {
                leaving.set(row, setTimeout(go, SOON));
                return;
            }
            item.classList.add('task-runs-leaving');
            leaving.set(row, setTimeout(() => {
                item.remove();
                leaving.delete(row);
                tidy();
            }, LEAVING));
        };
        const since = endedAt.get(idOf(row));
        const rest = isFinished(row) && since !== undefined ? since + SHOWN_FOR - now() : 0;
        leaving.set(row, setTimeout(go, Math.max(0, rest)));
    };
    const stay = row => {
        clearTimeout(leaving.get(row));
        leaving.delete(row);
        (row.closest('li') ?? row).classList.remove('task-runs-leaving');
    };

    const insert = (list, run) => {
        const place = list.querySelector('[data-task-runs-list]');
        const row = parsed(run.html).querySelector('[data-task-run]');
        if (!place || !row) {
            return false;
        }
        const item = document.createElement(place.matches('ul, ol') ? 'li' : 'div');
        item.className = 'task-runs-item';
        item.append(row);
        own.add(row);
        // The newest first.
        const next = all('[data-task-run]', place).find(other => idOf(other) < run.id);
        place.insertBefore(item, next ? [...place.children].find(child => child.contains(next)) : null);
        return true;
    };

    // Show a run as it is now, in a list too if it belongs there; tell whether that is news.
    const showRun = (run, isForLists) => {
        const shown = all('[data-task-run]').filter(row => idOf(row) === run.id);
        const states = new Set();
        let changed = false;
        for (const row of shown) {
            if (leaving.has(row)) {
                stay(row);
            }
            states.add(row.dataset.state);
            if (row.dataset.version !== run.version) {
                const source = parsed(run.html).querySelector('[data-task-run]');
                if (source) {
                    liken(row, source);
                    changed = true;
                }
            }
        }
        for (const list of isForLists ? lists() : []) {
            if (!shown.some(row => list.contains(row))) {
                changed = insert(list, run) || changed;
            }
        }
        if (changed && (states.size !== 1 || !states.has(run.state))) {
            announce(run);
        }
        return changed;
    };

    // Whose state has changed since is not brought half up to date: that is asked for.
    const showProgress = message => {
        const stateOf = version => version.split('-')[0];
        let changed = false;
        for (const row of rowsOf(message.id)) {
            if (stateOf(row.dataset.version ?? '') !== stateOf(message.version)) {
                refresh();
            } else if (row.dataset.version !== message.version) {
                const place = row.querySelector('[data-task-run-progress]');
                if (place) {
                    likenContent(place, parsed(message.html));
                }
                row.dataset.version = message.version;
                changed = true;
            }
        }
        return changed;
    };

    const showGone = ids => {
        const left = rows().filter(row => ids.includes(idOf(row)));
        for (const row of left) {
            if (isListed(row)) {
                leave(row);
            } else {
                gone.add(row);
            }
        }
        return left.length > 0;
    };

    const showAll = (message, names) => {
        const ids = message.runs.map(run => run.id);
        const left = rows().filter(row => isListed(row) && !ids.includes(idOf(row))).map(idOf);
        all('[data-task-runs-more]').forEach(element => show(element, message.more));
        const news = message.runs.map(run => showRun(run, !names.includes(run.id)));
        return showGone(left) || news.includes(true);
    };

    // Take what the server says; tell whether that is news. `names` are the runs that were asked
    // for by their ids, and so belong in no list for being in the answer.
    const take = (message, names = []) => {
        switch (message.type) {
        case 'snapshot': return showAll(message, names);
        case 'state': return showRun(message.run, !names.includes(message.run.id));
        case 'progress': return showProgress(message);
        case 'gone': return showGone(message.ids);
        case 'seen': showSeen(message.ids); return false;
        default: return false;
        }
    };

    // ---- What was seen ----

    //: How often it was asked to mark a run, and when next.
    const marks = new Map();
    let refusals = 0;
    let seenTimer = 0;

    const showSeen = ids => {
        for (const row of rowsIn(ids)) {
            row.dataset.seen = '';
        }
        ids.forEach(id => marks.delete(id));
    };
    const rowsIn = ids => all('[data-task-run]').filter(row => ids.includes(idOf(row)));
    const unseen = () => rows().filter(row => isFinished(row) && !isSeen(row) && !gone.has(row)
        && (marks.get(idOf(row))?.times ?? 0) < MARKS_MAX);
    // In a part of the page that is closed nobody sees it.
    const isRendered = row => row.getClientRects().length > 0;

    const planSeen = () => {
        for (const row of rows()) {
            if (!isFinished(row)) {
                endedAt.delete(idOf(row));
            } else if (!endedAt.has(idOf(row)) && !isSeen(row)) {
                endedAt.set(idOf(row), now());
            }
        }
        clearTimeout(seenTimer);
        if (!hasEnded && !document.hidden && refusals < REFUSALS_MAX && unseen().length) {
            seenTimer = setTimeout(markSeen, SEEN_AFTER);
        }
    };
    const markSeen = () => {
        const isDue = id => endedAt.get(id) <= now() - SEEN_AFTER + 50 && (marks.get(id)?.next ?? 0) <= now();
        const ids = [...new Set(unseen().filter(isRendered).map(idOf))].filter(isDue).slice(0, IDS_MAX);
        for (const id of ids) {
            const times = (marks.get(id)?.times ?? 0) + 1;
            marks.set(id, {times, next: now() + MARK_AGAIN * 2 ** (times - 1)});
        }
        if (ids.length && isLive) {
            unanswered = [...new Set([...unanswered, ...ids])];
            send({type: 'seen', ids});
        } else if (ids.length) {
            postSeen(ids);
        }
        planSeen();
    };
    // All are refused where one is: by halves the others are found.
    const postSeen = async ids => {
        const {seen, token} = config();
        const response = await request(seen, {
            method: 'POST',
            body: new URLSearchParams({ids: ids.join(','), csrfmiddlewaretoken: token ?? ''}),
        });
        const answer = await answerOf(response);
        if (answer?.type === 'seen') {
            take(answer);
        } else if (response && isRefusal(response)) {
            refusals += 1;
            if (ids.length === 1) {
                marks.set(ids[0], {times: MARKS_MAX, next: Infinity});
            } else if (refusals < REFUSALS_MAX) {
                const half = Math.ceil(ids.length / 2);
                await postSeen(ids.slice(0, half));
                await postSeen(ids.slice(half));
            }
        }
    };

    // ---- Asking ----

    let wait = SOON;
    let timer = 0;
    let isAsking = false;

    // No answer, a broken one, and none in time are all the same: null.
    const request = (address, options = {}) => address ? fetch(address, {
        cache: 'no-store',
        credentials: 'same-origin',
        redirect: 'manual',
        signal: AbortSignal.timeout?.(GIVEN_UP),
        ...options,
        headers: {Accept: 'application/json'},
    }).catch(() => null) : null;
    const answerOf = async response => response?.ok ? response.json().catch(() => null) : null;
    const isRefusal = response => response.type === 'opaqueredirect' || [401, 403].includes(response.status);
    // So that not all pages ask in the same moment when the server is back.
    const about = milliseconds => milliseconds * (0.75 + Math.random() / 2);

    const end = () => {
        hasEnded = true;
        clearTimeout(timer);
        clearTimeout(seenTimer);
        disconnect();
        note(config().textRefused ?? '');
    };

    // The address of what has changed since the page was like this; of all, if it would be too long.
    const address = names => {
        const isList = lists().length > 0;
        const versions = new Map();
        const ids = new Set([...names, ...rows().filter(isListed).map(idOf)]);
        for (const row of rows()) {
            const id = idOf(row);
            if (ids.has(id)) {
                const version = row.dataset.version ?? '';
                // Two rows of one run that differ: none is right for certain.
                versions.set(id, (versions.get(id) ?? version) === version ? version : 'x');
            }
        }
        const query = new URLSearchParams();
        if (names.length) {
            query.set('ids', names.join(','));
        }
        if (isList && names.length) {
            query.set('display', '1');
        }
        const asked = new URLSearchParams(query);
        if (versions.size) {
            asked.set('known', [...versions].map(pair => pair.join(':')).join(','));
        }
        // Both are for eyes too: a comma and a colon need no escapes.
        const join = (url, parameters) => `${url}?${String(parameters).replaceAll('%2C', ',').replaceAll('%3A', ':')}`;
        const changes = config().changes && join(config().changes, asked);
        return changes && changes.length > ADDRESS_MAX ? join(config().snapshot, query) : changes;
    };
    const messagesOf = answer => {
        const messages = answer?.messages ?? [answer];
        return Array.isArray(messages) && messages.every(message => message?.type) ? messages : null;
    };
    const learn = (messages, names) => {
        const changed = messages.map(message => take(message, names)).includes(true);
        const most = isUnfinished() ? LATER : LATE;
        wait = changed ? SOON : Math.min(wait * SLOWER, most);
        tidy();
        planSeen();
    };
    const slowDown = () => {
        errors += 1;
        wait = Math.min(SOON * 2 ** errors, LATEST);
        if (errors > 1) {
            note(config().textAway ?? '');
        }
    };
    // All are refused where one is, for a run that was deleted: find it. Tells whether anything is
    // answered at all, which it is not to somebody who is not logged in any more.
    const sift = async names => {
        const answer = await answerOf(await request(config().snapshot));
        const there = new Set(answer?.runs?.map(run => run.id));
        for (const id of answer ? names.filter(name => !there.has(name)) : []) {
            const response = await request(`${config().changes}?ids=${id}`);
            if (response && isRefusal(response)) {
                showGone([id]);
            }
        }
        return answer !== null;
    };
    const ask = async () => {
        // What a websocket has said in the meantime is newer than the answer.
        const asOf = lives;
        const names = followed().slice(0, IDS_MAX);
        isAsking = true;
        const response = await request(address(names));
        const messages = messagesOf(await answerOf(response));
        isAsking = false;
        if (hasEnded || asOf !== lives) {
            return;
        }
        if (messages) {
            errors = 0;
            note('');
            learn(messages, names);
        } else if (response && isRefusal(response)) {
            isAsking = true;
            const isKnown = names.length > 0 && await sift(names);
            isAsking = false;
            if (!isKnown) {
                end();
            }
        } else {
            slowDown();
        }
        follow();
        plan();
    };
    const plan = () => {
        clearTimeout(timer);
        if (!hasEnded && !isAsking && !isLive && !document.hidden && hasWork()) {
            timer = setTimeout(ask, errors || attempts ? about(wait) : wait);
        }
    };

    // ---- The websocket ----

    let socket = null;
    //: It has told how things are, so nobody needs to ask; how often one has.
    let isLive = false;
    let lives = 0;
    let attempts = 0;
    let liveSince = 0;
    let socketTimer = 0;
    let silenceTimer = 0;
    let hiddenTimer = 0;
    //: What it was told to follow, and to mark as seen, without an answer yet.
    let told = new Set();
    let unanswered = [];
    let socketErrors = 0;

    const send = message => {
        if (socket?.readyState === WebSocket.OPEN) {
            socket.send(JSON.stringify(message));
        }
    };
    const expectAnswer = () => {
        clearTimeout(silenceTimer);
        silenceTimer = setTimeout(lose, SILENT_FOR);
    };
    const askSocket = () => {
        send({type: 'snapshot'});
        expectAnswer();
    };
    const follow = () => {
        const ids = isLive ? followed().filter(id => !told.has(id)) : [];
        ids.forEach(id => told.add(id));
        for (let start = 0; start < ids.length; start += IDS_MAX) {
            send({type: 'follow', ids: ids.slice(start, start + IDS_MAX)});
        }
    };
    const disconnect = () => {
        const old = socket;
        socket = null;
        isLive = false;
        told = new Set();
        clearTimeout(socketTimer);
        clearTimeout(silenceTimer);
        if (old) {
            old.onmessage = old.onclose = old.onerror = null;
            old.close();
        }
    };
    // Without it the page asks, and tries again now and then.
    const lose = () => {
        const wasGood = isLive && now() - liveSince > GOOD_AFTER;
        const again = unanswered;
        unanswered = [];
        attempts = wasGood ? 1 : attempts + 1;
        disconnect();
        again.forEach(id => marks.delete(id));
        wait = SOON;
        plan();
        const spread = Math.random() * SPREAD;
        socketTimer = setTimeout(connect, spread + about(Math.min(SOON * 2 ** (attempts - 1), LATEST)));
    };
    const hear = text => {
        let message;
        try {
            message = JSON.parse(text);
        } catch {
            return;
        }
        clearTimeout(silenceTimer);
        silenceTimer = setTimeout(askSocket, QUIET_FOR);
        if (message?.type === 'snapshot' && !isLive) {
            isLive = true;
            lives += 1;
            liveSince = now();
            errors = 0;
            clearTimeout(timer);
            note('');
        }
        if (message?.type === 'error') {
            hearError();
            return;
        }
        if (message?.type === 'seen') {
            unanswered = unanswered.filter(id => !message.ids.includes(id));
        }
        const names = message?.type === 'state' && told.has(message.run.id) ? [message.run.id] : [];
        take(message ?? {}, names);
        follow();
        tidy();
        planSeen();
    };
    // It does not say which question it means. What was to be marked is marked the other way; of
    // runs that it does not follow the other way knows what became of them.
    const hearError = () => {
        const ids = unanswered;
        unanswered = [];
        socketErrors += 1;
        if (ids.length) {
            postSeen(ids);
        } else if (socketErrors > 3) {
            attempts += 5;
            lose();
        } else if (!isAsking) {
            told = new Set();
            ask();
        }
    };
    const connect = () => {
        const {websocket} = config();
        clearTimeout(socketTimer);
        if (!websocket || socket || hasEnded || document.hidden || !hasWork()) {
            return;
        }
        socketErrors = 0;
        try {
            const url = new URL(websocket, location.href);
            url.protocol = url.protocol.replace('http', 'ws');
            socket = new WebSocket(url);
        } catch {
            lose();
            return;
        }
        socket.onmessage = event => hear(event.data);
        socket.onclose = lose;
        expectAnswer();
    };

    // ---- When ----

    // Look now: somebody looks at the page again, or the net is back, or a script asks for it.
    const refresh = () => {
        if (hasEnded) {
            return;
        }
        if (isLive) {
            askSocket();
            return;
        }
        connect();
        wait = SOON;
        clearTimeout(timer);
        if (!isAsking && !document.hidden && hasWork()) {
            ask();
        }
    };
    const pause = () => {
        clearTimeout(timer);
        clearTimeout(seenTimer);
        clearTimeout(hiddenTimer);
        hiddenTimer = setTimeout(disconnect, HIDDEN_FOR);
    };
    const resume = () => {
        clearTimeout(hiddenTimer);
        attempts = 0;
        refresh();
        planSeen();
    };
    // Other scripts may add runs.
    const watch = () => new MutationObserver(records => {
        const isNew = node => node.nodeType === Node.ELEMENT_NODE && !node.closest('[data-task-run]:not(:scope)')
            && [node, ...all('*', node)].some(inner => inner.matches('[data-task-run]') && !own.has(inner));
        if (records.some(record => [...record.addedNodes].some(isNew))) {
            follow();
            refresh();
            planSeen();
        }
    }).observe(document.documentElement, {childList: true, subtree: true});

    const start = () => {
        document.addEventListener('visibilitychange', () => document.hidden ? pause() : resume());
        document.addEventListener('task-runs:refresh', refresh);
        window.addEventListener('online', resume);
        // A page with an open websocket can't be kept for "back".
        window.addEventListener('pagehide', () => {
            pause();
            disconnect();
        });
        window.addEventListener('pageshow', event => event.persisted && resume());
        newsRegion();
        planSeen();
        plan();
        connect();
        watch();
    };
    if (document.readyState === 'loading') {
        document.addEventListener('DOMContentLoaded', start);
    } else {
        start();
    }
}
