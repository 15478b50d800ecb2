"""What people prefer: `p2e eval compare RUN` shows two methods' clips side by side, blind, and keeps what they say.

`pairs` what is shown, `votes` the answers, `server` and `page/` the page, `agreement` how far raters say the same.
"""
