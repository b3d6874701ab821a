"""How far a run is, in a file: a line where a stage begins, one a minute, and one at the end."""

from gentickets.lines import Lines


def told(*events, every=60.0):
    """The lines for events of (seconds, stage, done), of 1,000 steps in all."""
    now = [0.0]
    lines = Lines(clock=lambda: now[0], every=every)
    found = []
    for now[0], stage, done in events:
        found.append(lines.line(stage, done, 1000, f"{done} images/s"))
    return found


def test_a_line_a_stage_and_one_a_minute_with_rate_and_time_left():
    found = told(
        (5, "level-00", 0), (20, "level-00", 100), (70, "level-00", 200), (80, "level-01", 250), (90, "x", 260)
    )
    assert found == [
        "level-00: 0 of 1,000 steps done, 0 images/s",
        None,
        "level-00: 200 of 1,000 steps done, 200 images/s, 4 min left",
        "level-01: 250 of 1,000 steps done, 250 images/s, 4 min left",
        "x: 260 of 1,000 steps done, 260 images/s, 4 min left",
    ]


def test_what_was_done_before_does_not_count_for_the_pace_and_the_end_is_told():
    found = told((0, "level-03", 900), (30, "level-03", 950), (60, "level-03", 975), (80, "level-03", 1000))
    assert found == [
        "level-03: 900 of 1,000 steps done, 900 images/s",
        None,
        "level-03: 975 of 1,000 steps done, 975 images/s, 20 s left",
        "level-03: 1,000 of 1,000 steps done, 1000 images/s",
    ]
