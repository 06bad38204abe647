//! `imgfs man`: the man pages, made from the command line and from docs/.

use clap::CommandFactory;

use crate::base::document::{self, Block, Line, Span};
use crate::cli::args::Cli;
use crate::error::{Error, Result};

/// A man page, as roff: 1 is imgfs(1), 7 is imgfs(7), 8 is imgfs-mount(8).
///
/// # Errors
///
/// `Io` if the page of the commands cannot be made.
pub fn page(section: u8) -> Result<String> {
    match section {
        7 => Ok(file_system()),
        8 => Ok(mounting()),
        _ => commands().map_err(Error::io("write", std::path::Path::new("the page"))),
    }
}

/// imgfs(1): the commands one by one, as clap knows them.
fn commands() -> std::io::Result<String> {
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    let all = all;
    let man = clap_mangen::Man::new(all.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    let options = document::parse(document::OPTIONS);
    page.push_str(".PP\n");
    page.push_str(&roff(document::section(&options, "Commands"), 1));
    page.push_str(".SH COMMANDS\n");
    for command in all.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
        let man = clap_mangen::Man::new(command.clone());
        page.push_str(&below(&format!(".SS {name}\n"), |out| man.render_synopsis_section(out))?);
        page.push_str(&below(".PP\n", |out| man.render_description_section(out))?);
        page.push_str(&below("", |out| man.render_options_section(out))?);
        if command.get_after_help().is_some() {
            page.push_str(&below(".PP\n", |out| man.render_extra_section(out))?);
        }
    }
    page.push_str(&see_also(&["imgfs(7)", "imgfs-mount(8)"]));
    Ok(page)
}

/// A section of one command as clap_mangen makes it, under another heading.
fn below(
    heading: &str,
    render: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
) -> std::io::Result<String> {
    let mut out = Vec::new();
    render(&mut out)?;
    let out = String::from_utf8_lossy(&out);
    let body =
        out.split_once(".SH ").and_then(|(_, rest)| rest.split_once('\n')).map_or("", |(_, body)| body);
    Ok(format!("{heading}{body}"))
}

/// imgfs(7): what a mount shows, and what each gesture on it does.
fn file_system() -> String {
    let front = document::parse(document::README);
    let mut page = title("imgfs", 7, "a mount that shows system images as directories");
    page.push_str(".SH DESCRIPTION\n");
    page.push_str(&roff(front.get(1..2).unwrap_or_default(), 1));
    page.push_str(".SS What a mount holds\n");
    page.push_str(&roff(document::section(&front, "What a mount holds"), 1));
    for text in [document::GESTURES, document::REFUSALS, document::KINDS, document::PERMISSIONS] {
        page.push_str(&roff(&document::parse(text), 1));
    }
    page.push_str(&see_also(&["imgfs(1)", "imgfs-mount(8)"]));
    page
}

/// imgfs-mount(8): the options of `imgfs mount`, mount(8) and fstab.
fn mounting() -> String {
    let options = document::parse(document::OPTIONS);
    let mut page = title("imgfs-mount", 8, "mount a store of system images");
    page.push_str(".SH SYNOPSIS\n");
    page.push_str(
        ".B imgfs mount\n[\\fB\\-\\-store\\fR \\fIDIR\\fR] [\\fB\\-o\\fR \\fIOPTIONS\\fR] \\fIMNT\\fR\n.PP\n",
    );
    page.push_str(".B mount \\-t fuse.imgfs\n[\\fB\\-o\\fR \\fIOPTIONS\\fR] \\fISTORE\\fR \\fIMNT\\fR\n");
    for part in ["Mounting", "Options", "Settings", "Limits", "A daemon without a mount", "The store"] {
        page.push_str(&format!(".SH {}\n", part.to_uppercase()));
        page.push_str(&roff(document::section(&options, part), 1));
    }
    page.push_str(&roff(&document::parse(document::TREES), 1));
    page.push_str(&see_also(&["imgfs(1)", "imgfs(7)", "mount(8)", "fstab(5)"]));
    page
}

fn title(name: &str, section: u8, what: &str) -> String {
    let (heading, name) = (escape(&name.to_uppercase()), escape(name));
    // Lines are not justified, because commands must look as they are typed.
    let version = env!("CARGO_PKG_VERSION");
    format!(
        ".TH {heading} {section} \"\" \"imgfs {version}\"\n.ad l\n.nh\n.SH NAME\n{name} \\- {}\n",
        escape(what)
    )
}

fn see_also(pages: &[&str]) -> String {
    let page = |page: &&str| {
        let (name, section) = page.split_once('(').unwrap_or((page, ""));
        format!(".BR {} ({section}", escape(name))
    };
    format!(".SH SEE ALSO\n{}\n", pages.iter().map(page).collect::<Vec<_>>().join(" ,\n"))
}

/// The blocks of a document as roff. A heading of depth `top` becomes a section, a deeper one a
/// subsection.
fn roff(blocks: &[Block], top: u8) -> String {
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Heading(depth, title) if *depth <= top => {
                text.push_str(&format!(".SH {}\n", escape(&title.to_uppercase())));
            }
            Block::Heading(_, title) => text.push_str(&format!(".SS {}\n", escape(title))),
            Block::Paragraph(line) => text.push_str(&format!(".PP\n{}\n", inline(line))),
            Block::Item(line) => text.push_str(&format!(".IP \\(bu 2\n{}\n", inline(line))),
            Block::Code(code) => {
                let lines: String = code.lines().map(|line| format!("{}\n", escape(line))).collect();
                text.push_str(&format!(".PP\n.in +4n\n.nf\n{lines}.fi\n.in\n"));
            }
            Block::Table { head, rows } => {
                text.extend(rows.iter().map(|row| entry(head, row)));
            }
        }
    }
    text
}

/// A row of a table. Its first cell is the tag, and each other cell gets a line.
fn entry(head: &[Line], row: &[Line]) -> String {
    let mut said = Vec::new();
    for (name, cell) in document::said(head, row) {
        let name = name.map_or(String::new(), |name| format!("\\fI{}\\fR: ", escape(&name)));
        said.push(name + &inline(cell));
    }
    let tag = row.first().map_or(String::new(), |cell| inline(cell));
    // A row without a first cell applies to everybody.
    let tag = if tag.is_empty() { "\\(bu".into() } else { tag };
    format!(".TP\n{tag}\n{}\n", said.join("\n.br\n"))
}

fn inline(line: &[Span]) -> String {
    let span = |span: &Span| match span {
        Span::Text(text) => escape(text),
        Span::Code(text) | Span::Strong(text) => format!("\\fB{}\\fR", escape(text)),
    };
    let text: String = line.iter().map(span).collect();
    text.trim().to_owned()
}

/// Escapes text so that roff shows it unchanged, and it can be copied from the page into a shell.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            '"' => out.push_str("\\(dq"),
            // A dot at the start of a line would begin a request.
            '.' if out.is_empty() => out.push_str("\\&."),
            c if c.is_ascii() => out.push(c),
            c => out.push_str(&format!("\\[u{:04X}]", u32::from(c))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roff_reads_as_its_own_is_shown_as_it_is() {
        assert_eq!(escape(".x -y '~' \\ …"), "\\&.x \\-y \\(aq\\(ti\\(aq \\e \\[u2026]");
        let blocks = document::parse(
            "# A b\n\n## C\n\n| a | b |\n|---|---|\n| `x` y | **z** |\n\n- i\n\n```\n.f\n```\n",
        );
        let wanted = ".SH A B\n.SS C\n.TP\n\\fBx\\fR y\n\\fBz\\fR\n.IP \\(bu 2\ni\n.PP\n.in +4n\n.nf\n\\&.f\n.fi\n.in\n";
        assert_eq!(roff(&blocks, 1), wanted);
    }

    /// Every section that a page takes from a document by its heading exists.
    #[test]
    fn no_section_of_a_page_is_empty() {
        for section in [1, 7, 8] {
            let page = page(section).unwrap();
            for part in page.split("\n.SH ").skip(1) {
                assert!(part.lines().nth(1).is_some(), "imgfs({section}) says nothing in {part:?}");
            }
        }
    }
}
