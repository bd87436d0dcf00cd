'use strict';

// Tables are sorted by the exact numbers or by text. Cells with n/a are always last.
function keyOf(row, column) {
  const cell = row.cells[column];
  const number = cell.querySelector('data');
  if (!number) return cell.textContent.trim();
  return number.value === '' ? null : Number(number.value);
}

function compare(a, b) {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en');
}

function sortBy(table, header) {
  const next = { none: 'ascending', ascending: 'descending', descending: 'none' };
  const order = next[header.getAttribute('aria-sort')];
  for (const other of table.tHead.querySelectorAll('[aria-sort]')) other.setAttribute('aria-sort', 'none');
  header.setAttribute('aria-sort', order);
  const rows = [...table.tBodies[0].rows];
  const sign = order === 'descending' ? -1 : 1;
  rows.sort((a, b) => a.dataset.place - b.dataset.place);
  if (order !== 'none') {
    rows.sort((a, b) => {
      const [x, y] = [keyOf(a, header.cellIndex), keyOf(b, header.cellIndex)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * compare(x, y);
    });
  }
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll('table.sortable')) {
  [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...header.childNodes);
    button.addEventListener('click', () => sortBy(table, header));
    header.append(button);
    header.setAttribute('aria-sort', 'none');
  }
}

// Sections can be folded one by one or all at once. They open for printing and for links to their
// content. On a phone, only the first section is open at the start.
const sections = [...document.querySelectorAll('main details')];
const tools = document.querySelector('.tools');
for (const [name, open] of [['Open all sections', true], ['Fold all sections', false]]) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = name;
  button.addEventListener('click', () => sections.forEach((section) => { section.open = open; }));
  tools.append(button);
}

if (matchMedia('(max-width: 800px)').matches) {
  sections.filter((section) => section.open).slice(1).forEach((section) => { section.open = false; });
}

function openAt(hash) {
  const target = document.getElementById(hash.slice(1));
  for (let at = target; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true;
}
addEventListener('hashchange', () => openAt(location.hash));
addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) openAt(link.hash);
});
openAt(location.hash);
let folded = [];
addEventListener('beforeprint', () => {
  folded = sections.filter((section) => !section.open);
  folded.forEach((section) => { section.open = true; });
});
addEventListener('afterprint', () => folded.forEach((section) => { section.open = false; }));
