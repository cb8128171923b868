"""What the page adds to Streamlit's style: less air, so that a run fits one screen, and rows that wrap."""

from __future__ import annotations

STYLE = """<style>
.stMainBlockContainer {padding: 1.25rem 2rem 3rem}
.stMainBlockContainer > div > [data-testid=stVerticalBlock] {gap: 0.75rem}
[data-testid=stSidebarHeader] {height: 2.5rem}
[data-testid=stButtonGroup] [role=radiogroup] {flex-wrap: wrap; row-gap: 0.25rem; mask-image: none}
[class*=st-key-gains] > div {flex: 1 1 10rem; min-width: 10rem}
[class*=st-key-gains] [data-testid=stMetricValue] {font-size: 1.4rem; line-height: 1.35}
.st-key-sides > div {flex: 1 1 18rem; min-width: min(18rem, 100%)}
.st-key-sides [data-testid=stImage] img {max-height: 23rem; width: auto; max-width: 100%}
.st-key-sides [data-testid=stVerticalBlock] {gap: 0.6rem}
@media (max-width: 640px) {
  .stMainBlockContainer {padding: 3.5rem 1rem 3rem} /* below the button of the side bar */
  [class*=st-key-gains] > div {flex-basis: 8rem; min-width: 8rem}
}
</style>"""
