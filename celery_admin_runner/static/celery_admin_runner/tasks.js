'use strict';
{
    // A second click must not start a task twice.
    let isSent = false;
    document.addEventListener('submit', event => {
        if (event.target.id === 'celerytask_form') {
            if (isSent) {
                event.preventDefault();
            }
            isSent = true;
        }
    });
    // The browser's "back" may bring the page as it was left.
    window.addEventListener('pageshow', () => {
        isSent = false;
    });
}
