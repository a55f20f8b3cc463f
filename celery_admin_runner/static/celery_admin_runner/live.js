'use strict';
// Let a run's page follow its run, and the list of runs its unfinished ones. What changes is
// HTML of the page's own templates; here it is only put in its place.
{
    //: Milliseconds between two questions: at first, at most, and after which one is given up.
    const SOON = 1000;
    const LATE = 15000;
    const GIVEN_UP = 20000;
    const SLOWER = 1.5;
    //: Characters of output that a page holds at most.
    const OUTPUT_MAX = 2 ** 20;

    // Ask `address()` again and again, until `take(answer)` says `{ended: true}`: soon again
    // after `{changed: true}`, at once after `{more: true}`, else more and more seldom. Not while
    // the tab is hidden.
    const follow = (texts, address, take) => {
        const note = document.getElementById('run-live-note');
        let wait = SOON;
        let timer = 0;
        let isAsking = false;
        let hasEnded = false;

        const say = text => {
            if (note.textContent !== text) {
                note.textContent = text;
            }
        };
        const end = text => {
            hasEnded = true;
            document.documentElement.classList.remove('run-is-live');
            say(text);
        };
        const slowDown = () => {
            wait = Math.min(Math.max(wait, SOON) * SLOWER, LATE);
        };
        const isRefusal = response => response.type === 'opaqueredirect' || [401, 403].includes(response.status);
        const learn = answer => {
            const {changed, more, ended} = take(answer);
            if (more || changed) {
                wait = more ? 0 : SOON;
            } else {
                slowDown();
            }
            say('');
            if (ended) {
                end('');
            }
        };
        // No answer, a broken one, and none in time are all the same: null.
        const request = () => fetch(address(), {
            cache: 'no-store',
            headers: {Accept: 'application/json'},
            redirect: 'manual',
            signal: AbortSignal.timeout(GIVEN_UP),
        }).catch(() => null);
        const ask = async () => {
            isAsking = true;
            const response = await request();
            const answer = response?.ok ? await response.json().catch(() => null) : null;
            isAsking = false;
            if (answer) {
                learn(answer);
            } else if (response && isRefusal(response)) {
                end(texts.refused);
            } else if (response?.status === 404) {
                end(texts.gone);
            } else {
                slowDown();
                say(texts.away);
            }
            plan();
        };
        const plan = () => {
            clearTimeout(timer);
            if (!hasEnded && !isAsking && !document.hidden) {
                timer = setTimeout(ask, wait);
            }
        };
        document.addEventListener('visibilitychange', () => {
            wait = document.hidden ? wait : 0;
            plan();
        });
        document.documentElement.classList.add('run-is-live');
        plan();
    };

    // What makes two elements the same one, so that it can stay: with its focus and its scroll.
    const identity = node => node.nodeType !== Node.ELEMENT_NODE ? '' : [
        node.tagName, node.id, node.className,
        ...['name', 'action', 'formaction', 'href'].map(name => node.getAttribute(name)),
    ].join('\n');

    const isToken = node => node.name === 'csrfmiddlewaretoken';

    // Give an element the attributes of another; tell whether that changed something.
    const copyAttributes = (node, source) => {
        let changed = false;
        for (const {name} of [...node.attributes]) {
            // What the user opened stays open.
            if (!source.hasAttribute(name) && name !== 'open') {
                node.removeAttribute(name);
                changed = true;
            }
        }
        for (const {name, value} of source.attributes) {
            if (node.getAttribute(name) !== value && name !== 'open') {
                node.setAttribute(name, value);
                changed = changed || !isToken(node);
            }
        }
        return changed;
    };

    // Make what an element holds like what another holds, and touch nothing that is the same;
    // tell whether that changed something.
    const liken = (node, source) => {
        let changed = false;
        let current = node.firstChild;
        for (const next of [...source.childNodes]) {
            const wanted = identity(next);
            let same = current;
            while (same && wanted && identity(same) !== wanted) {
                same = same.nextSibling;
            }
            if (!same || same.nodeType !== next.nodeType) {
                node.insertBefore(next, current);
                changed = true;
                continue;
            }
            while (current !== same) {
                const gone = current;
                current = current.nextSibling;
                gone.remove();
                changed = true;
            }
            current = same.nextSibling;
            if (same.nodeType === Node.ELEMENT_NODE) {
                changed = copyAttributes(same, next) || changed;
                changed = liken(same, next) || changed;
            } else if (same.nodeValue !== next.nodeValue) {
                same.nodeValue = next.nodeValue;
                changed = true;
            }
        }
        while (current) {
            const gone = current;
            current = current.nextSibling;
            gone.remove();
            changed = true;
        }
        return changed;
    };

    const parsed = html => {
        const template = document.createElement('template');
        template.innerHTML = html;
        return template.content;
    };

    // Show the parts of the page as they are now. Whose button is gone finds its place again.
    const showParts = fragments => {
        let changed = false;
        for (const part of document.querySelectorAll('[data-live-part]')) {
            const hadFocus = part.contains(document.activeElement);
            changed = liken(part, parsed(fragments[part.dataset.livePart])) || changed;
            if (hadFocus && !part.contains(document.activeElement)) {
                part.tabIndex = -1;
                part.focus({preventScroll: true});
            }
        }
        return changed;
    };

    // Add pieces to the output. Who looks at its end goes on looking at its end.
    const addOutput = html => {
        const output = document.getElementById('run-output');
        const text = output.querySelector('pre');
        const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 20;
        text.append(parsed(html));
        output.hidden = false;
        let length = text.textContent.length;
        while (atEnd && length > OUTPUT_MAX && text.childElementCount > 1) {
            length -= text.firstElementChild.textContent.length;
            text.firstElementChild.remove();
            document.getElementById('run-output-cut').hidden = false;
        }
        if (atEnd) {
            text.scrollTop = text.scrollHeight;
        }
    };

    // Put notes of what was left out where they belong; they come when what follows is here.
    const addNotes = html => {
        const text = document.querySelector('#run-output pre');
        for (const note of [...parsed(html).children]) {
            const pieces = [...text.children];
            const next = pieces.findIndex(piece => Number(piece.dataset.seq) >= Number(note.dataset.seq));
            if (next > 0 && pieces[next].dataset.seq !== note.dataset.seq) {
                text.insertBefore(note, pieces[next]);
            }
        }
    };

    const followRun = page => {
        const text = document.querySelector('#run-output pre');
        let after = page.dataset.after;
        text.scrollTop = text.scrollHeight;
        follow(page.dataset, () => `${page.dataset.url}?after=${after}`, answer => {
            const isNew = String(answer.last_seq) !== after;
            if (isNew) {
                addOutput(answer.fragments.output);
                after = String(answer.last_seq);
            }
            addNotes(answer.fragments.notes);
            const changed = showParts(answer.fragments) || isNew;
            return {changed, more: answer.more, ended: answer.finished && !answer.more};
        });
    };

    const followList = list => {
        const unfinished = () => [...document.querySelectorAll('[data-live-run]')];
        const show = (badge, run) => {
            const row = badge.closest('tr');
            let changed = false;
            for (const [name, html] of Object.entries(run.cells)) {
                const cell = row.querySelector(`.field-${name}`);
                const place = name === 'state_column' ? badge : cell;
                const shown = parsed(html);
                const source = name === 'state_column' ? shown.querySelector('[data-live-run]') || shown : shown;
                if (place && (place === badge || !place.childElementCount)) {
                    changed = liken(place, source) || changed;
                }
            }
            return changed;
        };
        const take = ({runs}) => {
            let changed = false;
            for (const badge of unfinished()) {
                const run = runs[badge.dataset.liveRun];
                changed = run ? show(badge, run) || changed : changed;
                if (!run || run.finished) {
                    badge.removeAttribute('data-live-run');
                }
            }
            return {changed, ended: unfinished().length === 0};
        };
        if (unfinished().length) {
            const ids = () => unfinished().map(badge => badge.dataset.liveRun).join(',');
            follow(list.dataset, () => `${list.dataset.url}?ids=${ids()}`, take);
        }
    };

    document.addEventListener('DOMContentLoaded', () => {
        const page = document.getElementById('run-live');
        const list = document.getElementById('run-live-list');
        if (page) {
            followRun(page);
        }
        if (list) {
            followList(list);
        }
    });
}
