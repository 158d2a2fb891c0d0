"""The Pools page in a browser."""

#: What of the page is wider than its room, or out of sight to the side.
MISFITS = """
    const wrong = [document.documentElement, ...document.querySelectorAll('.scroll')]
        .filter((one) => one.scrollWidth > one.clientWidth);
    for (const one of document.querySelectorAll('.phase, .cost, .act button')) {
        const at = one.getBoundingClientRect();
        if (at.left < 0 || at.right > innerWidth) wrong.push(one);
    }
    return wrong.map((one) => one.className || one.tagName);
"""
#: Count what changes in the document, without the clocks.
OBSERVE = """
    window.changes = [];
    const isClock = (node) => (node.nodeType === 1 ? node : node.parentElement)?.closest('[data-clock]');
    new MutationObserver((records) => {
        for (const one of records) if (!isClock(one.target)) {
            const {target} = one;
            const text = target.textContent.slice(0, 80);
            const name = target.className || target.nodeName;
            window.changes.push(`${one.type} ${one.attributeName || ''} of ${name}: ${text}`);
        }
    }).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
"""
#: The texts of the cells of each row that matches.
CELLS = """
    return [...document.querySelectorAll(arguments[0])].map((tr) => [...tr.children].map((one) => one.textContent));
"""
