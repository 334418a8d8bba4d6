"""The leaderboard as static pages: entries in, files out; the same bytes for the same entries in any order."""

from cprbench.render.site.board import Board, boards_of
from cprbench.render.site.entry import entry_page, entry_path
from cprbench.render.site.pages import board_files, index_page, render, site_files

__all__ = ["Board", "board_files", "boards_of", "entry_page", "entry_path", "index_page", "render", "site_files"]
