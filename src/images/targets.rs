//! The targets of links in the root, of links in images, and of aliases.

use crate::base::name::parse_number;
use crate::catalog::{Alias, Follows, Label, Model, Named, Version};
use crate::error::{Error, Result};

/// What a link in the root leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    pub image: u32,
    /// A fixed version. `None`: what `follows` says.
    pub number: Option<u32>,
    pub follows: Follows,
}

impl LinkTarget {
    pub(super) fn image(image: u32) -> LinkTarget {
        LinkTarget { image, number: None, follows: Follows::Image }
    }

    /// The image, if the link leads to the image and not to something in it.
    pub fn whole_image(&self) -> Option<u32> {
        (self.number.is_none() && self.follows.is_image()).then_some(self.image)
    }
}

/// Resolves the target of a link in the root: `web`, `./web`, `web/1`, `web/latest`, `web/default`,
/// `web/@22.04`, `web@22.04`, or an absolute path into the mount.
///
/// # Errors
///
/// `NotFound` for what is not there.
pub fn resolve_root_link(model: &Model, target: &str, mount_point: &str) -> Result<LinkTarget> {
    let missing = || Error::NotFound { what: format!("{target} to link to") };
    let inside = match target.strip_prefix(mount_point) {
        Some(rest) if !mount_point.is_empty() && (rest.is_empty() || rest.starts_with('/')) => rest,
        _ if target.starts_with('/') => return Err(missing()),
        _ => target,
    };
    let parts: Vec<&str> = inside.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if let Some(target) = slashed_alias(model, &parts) {
        return Ok(target);
    }
    let mut parts = parts.into_iter();
    let (first, second, none) = (parts.next().ok_or_else(missing)?, parts.next(), parts.next());
    let target = if first == "default" {
        LinkTarget::image(model.default_image.ok_or_else(missing)?)
    } else {
        match model.named(first) {
            Some(Named::Image(serial)) => LinkTarget::image(serial),
            Some(Named::Alias(serial)) => target_of_alias(&model.aliases[&serial]),
            None => {
                let label = at_label(model, first).ok_or_else(missing)?;
                LinkTarget { image: label.image, number: None, follows: Follows::Label(label.name.clone()) }
            }
        }
    };
    match (target.whole_image(), second, none) {
        (_, None, None) => Ok(target),
        (Some(image), Some(part), None) => resolve_part(model, image, part).ok_or_else(missing),
        _ => Err(missing()),
    }
}

/// What an alias with slashes leads to, `centos/6/amd64`, or a part of its image,
/// `centos/6/amd64/latest`. It takes precedence over a version of the same path.
fn slashed_alias(model: &Model, parts: &[&str]) -> Option<LinkTarget> {
    let slashed = |parts: &[&str]| (parts.len() > 1).then(|| parts.join("/"));
    let alias = |parts: &[&str]| model.alias_named(&slashed(parts)?).map(target_of_alias);
    alias(parts).or_else(|| {
        let (last, before) = parts.split_last()?;
        resolve_part(model, alias(before)?.whole_image()?, last)
    })
}

/// The label that `web@1.0` means, in an image or through an alias of one. If image names contain `@`,
/// the shortest image name that has such a label counts.
pub fn at_label<'m>(model: &'m Model, text: &str) -> Option<&'m Label> {
    text.match_indices('@').filter(|(at, _)| *at > 0).find_map(|(at, _)| {
        let image = match model.named(&text[..at])? {
            Named::Image(serial) => serial,
            Named::Alias(serial) => target_of_alias(model.aliases.get(&serial)?).whole_image()?,
        };
        model.live_label(image, &text[at + 1..])
    })
}

/// What a part of an image's path leads to, if it exists. A number is fixed; all else follows.
fn resolve_part(model: &Model, image: u32, part: &str) -> Option<LinkTarget> {
    let newest = model.latest(image);
    let (number, follows) = match part {
        "latest" => newest.map(|_| (None, Follows::Latest))?,
        "default" => newest.map(|_| (None, Follows::Default))?,
        _ => match part.strip_prefix('@') {
            Some(label) => {
                model.live_label(image, label).map(|label| (None, Follows::Label(label.name.clone())))?
            }
            None => (Some(model.version(image, parse_number(part.as_bytes())?)?.number), Follows::Image),
        },
    };
    Some(LinkTarget { image, number, follows })
}

/// The version that a link leads to now.
pub fn version_of<'m>(model: &'m Model, target: &LinkTarget) -> Option<&'m Version> {
    match (target.number, &target.follows) {
        (Some(number), _) => model.version(target.image, number),
        (None, Follows::Latest) => model.latest(target.image),
        (None, Follows::Image | Follows::Default) => model.default_version(model.live_image(target.image)?),
        (None, Follows::Label(name)) => {
            model.version(target.image, model.live_label(target.image, name)?.number)
        }
    }
}

/// The version that a command names: `web/1`, `web/@22.04`, `web@22.04`, or `web` or an alias for its
/// default.
///
/// # Errors
///
/// `NotFound`.
pub fn find_version(model: &Model, name: &str) -> Result<Version> {
    let missing = || Error::NotFound { what: format!("version {name}") };
    let target = resolve_root_link(model, name, "").map_err(|_| missing())?;
    version_of(model, &target).cloned().ok_or_else(missing)
}

/// Resolves the target of a link inside an image: a version's number, also by a label. `None` is
/// `latest`.
///
/// # Errors
///
/// `NotFound` for what is not there.
pub fn resolve_inner_link(model: &Model, image: u32, target: &str) -> Result<Option<u32>> {
    let missing = || Error::NotFound { what: format!("version {target} to link to") };
    let target = target.strip_prefix("./").unwrap_or(target).trim_end_matches('/');
    if target == "latest" {
        return Ok(None);
    }
    let number = match target.strip_prefix('@') {
        Some(label) => model.live_label(image, label).map(|l| l.number),
        None => parse_number(target.as_bytes()),
    };
    let number = number.ok_or_else(missing)?;
    model.version(image, number).map(|v| Some(v.number)).ok_or_else(missing)
}

/// What an alias leads to.
pub fn target_of_alias(alias: &Alias) -> LinkTarget {
    LinkTarget { image: alias.image, number: alias.number, follows: alias.follows.clone() }
}

/// The target of a link in the root, as a path from there: `web`, `web/1`, `web/latest`. `None` if the
/// image is gone.
pub fn path_of_target(model: &Model, target: &LinkTarget) -> Option<String> {
    let image = &model.images.get(&target.image)?.name;
    Some(match (target.number, &target.follows) {
        (Some(number), _) => format!("{image}/{number}"),
        (None, Follows::Image) => image.clone(),
        (None, Follows::Latest) => format!("{image}/latest"),
        (None, Follows::Default) => format!("{image}/default"),
        (None, Follows::Label(label)) => format!("{image}/@{label}"),
    })
}
