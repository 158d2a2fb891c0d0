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
