//! `docs/*.md` inside the program: `cat MNT/.imgfs/README` and the man pages are made of them.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

pub const README: &str = include_str!("../../README.md");
pub const GESTURES: &str = include_str!("../../docs/gestures.md");
pub const REFUSALS: &str = include_str!("../../docs/refusals.md");
pub const KINDS: &str = include_str!("../../docs/kinds.md");
pub const OPTIONS: &str = include_str!("../../docs/options.md");
pub const PERMISSIONS: &str = include_str!("../../docs/permissions.md");
pub const TREES: &str = include_str!("../../docs/trees.md");

/// A part of a line.
#[derive(Debug, PartialEq)]
pub enum Span {
    Text(String),
    /// Text that is typed, or read on a screen.
    Code(String),
    Strong(String),
}

/// Text that is filled to the width of a page: a paragraph, a cell.
pub type Line = Vec<Span>;

/// A piece of a document.
#[derive(Debug, PartialEq)]
pub enum Block {
    /// 1 for the title of the document.
    Heading(u8, String),
    Paragraph(Line),
    /// One item of a list.
    Item(Line),
    /// Lines that keep their form.
    Code(String),
    Table {
        head: Vec<Line>,
        rows: Vec<Vec<Line>>,
    },
}

/// Reads Markdown as used in docs/. Images and comments are left out, and a link becomes its text.
pub fn parse(markdown: &str) -> Vec<Block> {
    let mut reader = Reader::default();
    Parser::new_ext(markdown, Options::ENABLE_TABLES).for_each(|event| reader.event(event));
    reader.blocks
}

/// The blocks below a heading, up to the next heading that is not a part of it. Empty if there is no
/// such heading.
pub fn section<'b>(blocks: &'b [Block], title: &str) -> &'b [Block] {
    let is_it = |block: &Block| matches!(block, Block::Heading(_, text) if text == title);
    let Some(start) = blocks.iter().position(is_it) else { return &[] };
    let Block::Heading(depth, _) = &blocks[start] else { return &[] };
    let rest = &blocks[start + 1..];
    let ends = |block: &Block| matches!(block, Block::Heading(other, _) if other <= depth);
    &rest[..rest.iter().position(ends).unwrap_or(rest.len())]
}

/// The words of a line, without marks.
pub fn words(line: &[Span]) -> String {
    line.iter().map(|(Span::Text(text) | Span::Code(text) | Span::Strong(text))| text.as_str()).collect()
}

/// The cells of a row except for the first one. If a row has more than two cells, each comes with the
/// name of its column.
pub fn said<'b>(head: &'b [Line], row: &'b [Line]) -> impl Iterator<Item = (Option<String>, &'b Line)> {
    let name =
        |n: usize| head.get(n).map(|line| words(line)).filter(|name| row.len() > 2 && !name.is_empty());
    row.iter().enumerate().skip(1).filter(|(_, cell)| !cell.is_empty()).map(move |(n, cell)| (name(n), cell))
}

#[derive(Default)]
struct Reader {
    blocks: Vec<Block>,
    line: Line,
    cells: Vec<Line>,
    strong: bool,
    in_image: bool,
    in_item: bool,
    in_code: bool,
}

impl Reader {
    fn event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(_) if self.in_image => {}
            Event::Text(text) if self.in_code => {
                if let Some(Block::Code(code)) = self.blocks.last_mut() {
                    code.push_str(&text);
                }
            }
            Event::Text(text) if self.strong => self.line.push(Span::Strong(text.into_string())),
            Event::Text(text) => self.line.push(Span::Text(text.into_string())),
            Event::Code(code) => self.line.push(Span::Code(code.into_string())),
            Event::SoftBreak | Event::HardBreak => self.line.push(Span::Text(" ".into())),
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag) {
        match tag {
            Tag::Strong => self.strong = true,
            Tag::Image { .. } => self.in_image = true,
            Tag::Item => self.in_item = true,
            Tag::CodeBlock(_) => {
                self.in_code = true;
                self.blocks.push(Block::Code(String::new()));
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong => self.strong = false,
            TagEnd::Image => self.in_image = false,
            TagEnd::CodeBlock => self.in_code = false,
            TagEnd::Heading(level) => {
                let text = words(&std::mem::take(&mut self.line));
                self.blocks.push(Block::Heading(depth(level), text));
            }
            TagEnd::Paragraph if !self.in_item => self.push(Block::Paragraph),
            TagEnd::Item => {
                self.in_item = false;
                self.push(Block::Item);
            }
            TagEnd::TableCell => {
                let cell = self.taken();
                self.cells.push(cell);
            }
            TagEnd::TableHead => {
                let head = std::mem::take(&mut self.cells);
                self.blocks.push(Block::Table { head, rows: Vec::new() });
            }
            TagEnd::TableRow => {
                let row = std::mem::take(&mut self.cells);
                if let Some(Block::Table { rows, .. }) = self.blocks.last_mut() {
                    rows.push(row);
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, block: fn(Line) -> Block) {
        let line = self.taken();
        if !line.is_empty() {
            self.blocks.push(block(line));
        }
    }

    /// The line that ends here, without leading and trailing blanks.
    fn taken(&mut self) -> Line {
        let mut line = std::mem::take(&mut self.line);
        while let Some(Span::Text(last)) = line.last_mut() {
            last.truncate(last.trim_end().len());
            if !last.is_empty() {
                break;
            }
            line.pop();
        }
        line
    }
}

fn depth(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        _ => 3,
    }
}

/// Where the second column of a table begins on a screen, and where lines end.
const COLUMN: usize = 36;
const WIDTH: usize = 110;

/// A document as plain text for a screen.
pub fn plain(blocks: &[Block]) -> String {
    let mut text = String::new();
    for (n, block) in blocks.iter().enumerate() {
        let follows =
            matches!((block, n.checked_sub(1).map(|n| &blocks[n])), (Block::Item(_), Some(Block::Item(_))));
        if n > 0 && !follows {
            text.push('\n');
        }
        match block {
            Block::Heading(_, title) => text.push_str(&format!("{}\n", title.to_uppercase())),
            Block::Paragraph(line) => fill(&mut text, "", 0, &marked(line)),
            Block::Item(line) => fill(&mut text, "- ", 2, &marked(line)),
            Block::Code(code) => code.lines().for_each(|line| verbatim(&mut text, line)),
            Block::Table { head, rows } => rows.iter().for_each(|row| entry(&mut text, head, row)),
        }
    }
    text
}

/// Adds a line that keeps its form.
fn verbatim(text: &mut String, line: &str) {
    text.push_str(format!("  {line}").trim_end());
    text.push('\n');
}

/// Adds a row of a table: what is typed, and beside it what happens.
fn entry(text: &mut String, head: &[Line], row: &[Line]) {
    let tag = row.first().map_or(String::new(), |cell| words(cell));
    let mut first = format!("  {tag:width$}", width = COLUMN - 4);
    if first.chars().count() > COLUMN - 2 {
        fill(text, "  ", 4, &tag);
        first.clear();
    }
    for (name, cell) in said(head, row) {
        let name = name.map_or(String::new(), |name| format!("{name}: "));
        fill(text, &format!("{first:COLUMN$}"), COLUMN, &format!("{name}{}", marked(cell)));
        first.clear();
    }
    if !first.is_empty() {
        text.push_str(&format!("{}\n", first.trim_end()));
    }
}

/// A line with backquotes around code.
fn marked(line: &[Span]) -> String {
    let span = |span: &Span| match span {
        Span::Code(code) => format!("`{code}`"),
        Span::Text(text) | Span::Strong(text) => text.clone(),
    };
    line.iter().map(span).collect()
}

/// Adds words in lines of at most `WIDTH` columns. `first` begins the first line, and `indent` blanks
/// the others.
fn fill(text: &mut String, first: &str, indent: usize, words: &str) {
    let mut line = first.to_owned();
    let mut is_bare = true;
    for word in words.split_whitespace() {
        if !is_bare && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = " ".repeat(indent);
            is_bare = true;
        }
        if !is_bare {
            line.push(' ');
        }
        line.push_str(word);
        is_bare = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# Title

Some `code`, a [link](x.md),
**strong**. ![image](y.svg)

## Part

| gesture | errno | rule |
|---|---|---|
| `a \\| b` | EPERM | why <!-- tests: one --> |
| plain | | |

- one
- two

```sh
x  # y
```

## Other

    kept  as
    it is
";

    #[test]
    fn a_document_is_read_and_shown_without_its_comments() {
        let blocks = parse(DOCUMENT);
        assert_eq!(section(&blocks, "Part").len(), 4);
        assert_eq!(section(&blocks, "Title").len(), blocks.len() - 1);
        assert!(section(&blocks, "none").is_empty());
        let wanted = "\
TITLE

Some `code`, a link, strong.

PART

  a | b                             errno: EPERM
                                    rule: why
  plain

- one
- two

  x  # y

OTHER

  kept  as
  it is
";
        assert_eq!(plain(&blocks), wanted);
    }

    #[test]
    fn long_words_begin_a_line_of_their_own() {
        let mut text = String::new();
        fill(&mut text, "- ", 2, &format!("{} {} c", "a".repeat(100), "b".repeat(120)));
        assert_eq!(text, format!("- {}\n  {}\n  c\n", "a".repeat(100), "b".repeat(120)));
    }
}
