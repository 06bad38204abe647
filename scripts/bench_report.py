"""What a run of bench.sh found, as tables and charts; and the places of README.md and docs/ that show it.

Usage: bench_report.py write|check [ROOT]: from docs/bench.json into the documents, or whether they agree with it.
A place in a document is what stands between `<!-- bench: NAME -->` and `<!-- end -->`.
"""

import json
import re
import statistics
import sys
import textwrap
from pathlib import Path

DOCUMENTS = ["README.md", "docs/performance.md"]
CHARTS = "scripts/bench"
PEERS = ["imgfs", "imgfs trees=inline", "imgfs packed", "ext4", "squashfs", "erofs", "squashfuse"]
FIVE = "five images (web-v0 to v3, trixie-v0: 1,191 MB of tar) stored"

INGEST = [
    ("first version; `tar xf` to ext4 and sync", "cp first", "tar xf and sync"),
    ("first version; `borg import-tar`", "cp first", "borg import-tar"),
    ("first version; `restic backup` of the unpacked tree", "cp first", "restic backup"),
    ("first version; `casync make` of the unpacked tree", "cp first", "casync make"),
    ("first version; `ostree commit` of the unpacked tree", "cp first", "ostree commit"),
    ("first version; `sqfstar -comp zstd`", "cp first", "sqfstar -comp zstd"),
    ("most content known; first version", "cp shared", "cp first"),
    ("the same again; first version", "cp same", "cp first"),
    (".tar.xz; `xz -T2 -dc`", "cp xz", "bare xz"),
    (".tar.zst; `zstd -dc`", "cp zst", "bare zst"),
    (".tar.gz; `gzip -dc`", "cp gz", "bare gz"),
    ("twenty of web-v0 (170 MB) at once; web-v3", "cp twenty", "cp first"),
]
READ = [
    ("`find -ls`, warm", "warm find -ls"),
    ("the same, a CPU busy", "busy find -ls"),
    ("`du -s`, warm", "warm du -s"),
    ("the same, a CPU busy", "busy du -s"),
    ("`tar c \\| cat`, warm", "warm tar c | cat"),
    ("the same, a CPU busy", "busy tar c | cat"),
    ("`grep -r` in usr/share, warm", "warm grep -r"),
    ("`cp -a` of usr/share, warm", "warm cp -a"),
    ("`find -ls`, fresh mount, store in memory", "cold find -ls"),
    ("`tar c \\| cat`, fresh mount, store in memory", "cold tar c | cat"),
    ("`tar c \\| cat`, nothing in memory", "disk cold tar c | cat"),
    ("110 MB file, fresh mount", "cold large file"),
    ("110 MB file, warm", "warm large file"),
    ("`chroot … /bin/true`, fresh mount", "cold chroot true"),
    ("random 4 KiB, warm, microseconds", "warm random 4 KiB"),
    ("`rootfs.tar`, fresh mount", "cold rootfs.tar"),
]


def digits(value):
    """A value as a cell shows it: two digits below 1, one or two places above."""
    if value < 1:
        places = 1
        while value * 10**places < 1:
            places += 1
        return f"{value:.{places + 1}f}"
    return f"{value:.2f}" if value < 5 else f"{value:.1f}"


def duration(seconds):
    """Seconds with a unit that fits."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


class Report:
    """Samples by name, in seconds, and what else was found."""

    def __init__(self, samples, facts):
        self.samples, self.facts = samples, facts

    def median(self, name):
        return statistics.median(self.samples[name])

    def worst(self, name):
        """What 99 of 100 stay below."""
        samples = sorted(self.samples[name])
        return samples[int(len(samples) * 0.99 - 1e-9)]

    def ingest(self):
        rows = [
            f"| {text} | {self.median(a):.2f} s | {self.median(b):.2f} s | {self.median(a) / self.median(b):.2f} |"
            for text, a, b in INGEST
        ]
        return ["| ingest | imgfs | against | ratio |", "|---|---|---|---|", *rows]

    def read(self):
        def cell(kind, peer):
            name = f"{kind}: {peer}"
            if name not in self.samples:
                return ""
            return digits(self.median(name) * (1e6 if "random" in kind else 1))

        heads = ["imgfs", "`trees=inline`", "packed", *PEERS[3:]]
        rows = [f"| {text} | {' | '.join(cell(kind, peer) for peer in PEERS)} |" for text, kind in READ]
        return [f"| seconds, web-v3's tree | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", *rows]

    def stored(self):
        rows = [f"| {name} | {size / 1e6:.1f} |" for name, size in self.facts["stored, bytes"].items()]
        return [f"| {FIVE} | MB |", "|---|---|", *rows]

    def repack(self):
        facts = self.facts
        text = (
            f"Trees and catalog are counted. web-v1 after web-v0 takes {facts['web-v1 after web-v0, bytes'] / 1e6:.2f} MB. "
            f"A repack of the five takes {facts['repack auto, seconds']:.0f} s and {facts['repack auto peak MiB']} MiB of "
            f"memory, as `small` {facts['repack small, seconds']:.0f} s and {facts['repack small peak MiB']} MiB."
        )
        return textwrap.wrap(text, 110, break_on_hyphens=False)

    def ends(self):
        def m(name):
            return duration(self.median(name))

        facts = self.facts
        one_more = duration(facts["1,000 ingests with 9,000 versions, seconds"] / 1000)
        peaks = [facts[key] for key in ["ingest peak MiB", "peak MiB, 1,000,000 files", "peak MiB, a file of 20 GB"]]
        rows = [
            ("`rmdir` of a version, median and 99 of 100", f"{m('rmdir')}, {duration(self.worst('rmdir'))}"),
            ("gc, 100 versions of 100,000 files, the whole command", m("gc, 100 versions of 100,000 files")),
            ("mount, 1,100 versions; idle memory", f"{m('mount, 1,100 versions')}; {facts['idle MiB, 1,100 versions']} MiB"),
            ("mount, 10,000 versions; idle memory", f"{m('mount, 10,000 versions')}; {facts['idle MiB, 10,000 versions']} MiB"),
            ("`ls -l` of 1,000 images; gc of 10,000 versions", f"{m('ls -l, 1,000 images')}; {m('gc, 10,000 versions')}"),
            ("a small version more, with 9,000 there (`tar`, `cp`, three processes)", one_more),
            ("a tree of 1,000,000 files: `cp`, `find`, `rmdir`", ", ".join(m(f"{op}, 1,000,000 files") for op in ["cp", "find", "rmdir"])),
            ("a file of 20 GB: `tar \\| cat` in, `cat` out, `rmdir`", ", ".join(m(f"{op}, a file of 20 GB") for op in ["tar | cp", "cat", "rmdir"])),
            ("peak memory: ingest of all above, of 1,000,000 files, of 20 GB", f"{', '.join(str(peak) for peak in peaks)} MiB"),
        ]
        return ["| | |", "|---|---|", *(f"| {text} | {value} |" for text, value in rows)]

    def front(self):
        """The few that README shows."""
        stored = self.facts["stored, bytes"]
        pairs = [
            ("an image of 533 MB in: `cp`; `tar xf` and sync", "cp first", "tar xf and sync"),
            ("the same image once more; `borg import-tar`", "cp same", "borg import-tar"),
            ("its tree read by `tar`, warm; ext4", "warm tar c | cat: imgfs", "warm tar c | cat: ext4"),
            ("the same, fresh mount; squashfs", "cold tar c | cat: imgfs", "cold tar c | cat: squashfs"),
        ]
        rows = [f"| {text} | {self.median(a):.2f} s | {self.median(b):.2f} s |" for text, a, b in pairs]
        ours, theirs = (stored[name] / 1e6 for name in ["imgfs repacked, auto", "five .tar.xz"])
        rows.append(f"| five images of 1,191 MB at rest; five `.tar.xz` | {ours:.0f} MB | {theirs:.0f} MB |")
        return ["| | imgfs | against |", "|---|---|---|", *rows]

    def rest(self):
        """Every sample that stands alone, and every fact."""
        alone = ("rmdir", "gc", "mount", "ls", "ls -l", "cp", "find", "cat", "tar | cp")
        rows = [f"| {name} | {duration(self.median(name))} | {duration(self.worst(name))} |"
                for name in self.samples if name.split(",")[0] in alone]
        facts = [f"| {key} | {value:,} | |" for key, value in self.facts.items() if not isinstance(value, dict)]
        return ["| | median | 99 of 100 |", "|---|---|---|", *rows, *facts]

    def all(self):
        """The tables of the documents that there are samples for, and the rest."""
        out = []
        for part in [self.ingest, self.read, self.stored, self.rest]:
            try:
                out += [*part(), ""]
            except KeyError: # that section was not asked for
                continue
        return "\n".join(out)

    def charts(self):
        """Bar charts: name of the file, SVG."""

        def pick(pairs):
            return [(label, self.median(name)) for label, name in pairs if name in self.samples]

        charts = {
            "ingest": ("web-v3.tar (533 MB) into the store, seconds", pick([
                ("imgfs: cp", "cp first"), ("imgfs: cp, the same again", "cp same"), ("tar xf, sync", "tar xf and sync"),
                ("borg import-tar", "borg import-tar"), ("restic backup", "restic backup"),
                ("ostree commit", "ostree commit"), ("casync make", "casync make"), ("sqfstar, zstd", "sqfstar -comp zstd")])),
            "warm": ("tar c | cat of web-v3's tree, warm, seconds", pick([(p, f"warm tar c | cat: {p}") for p in PEERS])),
            "cold": ("tar c | cat, fresh mount, store in memory, seconds", pick([(p, f"cold tar c | cat: {p}") for p in PEERS])),
            "space": ("five images (1,191 MB of tar), stored, MB", [
                (name, size / 1e6) for name, size in self.facts.get("stored, bytes", {}).items()]),
        }
        return {name: bars(title, rows) for name, (title, rows) in charts.items() if rows}


def bars(title, rows):
    """A bar chart as SVG; what is ours is darker."""
    top, wide = max(value for _, value in rows), 420
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{40 + 26 * len(rows)}" font-family="sans-serif" font-size="13">',
             '<rect width="100%" height="100%" fill="#fff"/>', f'<text x="10" y="22" font-weight="bold">{title}</text>']
    for n, (label, value) in enumerate(rows):
        y, colour = 34 + 26 * n, "#2b6cb0" if "imgfs" in label else "#a0aec0"
        label = label.replace("&", "&amp;").replace("<", "&lt;")
        lines += [f'<text x="190" y="{y + 14}" text-anchor="end">{label}</text>',
                  f'<rect x="200" y="{y}" width="{max(1, value / top * wide):.0f}" height="18" fill="{colour}"/>',
                  f'<text x="{206 + value / top * wide:.0f}" y="{y + 14}">{value:.3g}</text>']
    return "\n".join(lines + ["</svg>"]) + "\n"


def written(root):
    """Every file that shows figures, as docs/bench.json wants it: its path, its text."""
    found = json.loads((root / "docs/bench.json").read_text())
    report = Report(found["samples"], found["facts"])
    files, places = {}, 0
    for name in DOCUMENTS:
        text = (root / name).read_text()
        mark = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.S)
        text, count = mark.subn(lambda m: m[1] + "\n".join(getattr(report, m[2])()) + "\n" + m[3], text)
        files[root / name], places = text, places + count
    if places < 6:
        sys.exit(f"only {places} places for figures are left in {' and '.join(DOCUMENTS)}")
    files.update({root / CHARTS / f"{name}.svg": chart for name, chart in report.charts().items()})
    return files


def record(root, samples, facts):
    """Puts what a run found in the place of what was found before, and writes it into the documents."""
    path = root / "docs/bench.json"
    found = json.loads(path.read_text())
    found["samples"].update({name: [round(s, 7) for s in all] for name, all in samples.items()})
    found["facts"].update(facts)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write(root)


def write(root):
    for path, text in written(root).items():
        path.write_text(text)


def main():
    mode, root = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).resolve().parent.parent)
    if mode == "write":
        return write(root)
    differ = [str(path.relative_to(root)) for path, text in written(root).items() if path.read_text() != text]
    if differ:
        sys.exit(f"{', '.join(differ)}: not what docs/bench.json says; scripts/bench.sh write makes it so")


if __name__ == "__main__":
    main()
