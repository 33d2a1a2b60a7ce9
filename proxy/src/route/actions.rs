//! What a route does beside choosing a cluster, compiled once.

use std::rc::Rc;

use underpass_command::state::{Action, EditAction, EditOn, PathMatch, RedirectMode, Route, Scheme};

use super::auth::Auth;
use super::pattern::compile;
use super::template::{Groups, IN_REQUEST, IN_RESPONSE, IN_TARGET, Template, Values, Variable};
use crate::http1::{FieldChange, Texts, is_field_value, is_origin_form, parse_authority};

/// The most changes of header fields of a route.
pub const EDITS_MAX: usize = 32;
/// Statuses of redirections (RFC 9110 section 15.4).
pub const REDIRECT_STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// What is done with a request before or in place of passing it on. Shared by the table and the requests under way.
#[derive(Debug)]
pub struct Actions {
    /// What the proxy answers itself.
    pub answer: Option<Own>,
    /// Who may ask.
    pub auth: Option<Auth>,
    /// Overrides other redirect modes.
    pub redirect: Option<RedirectMode>,
    /// Changes of the request.
    pub request: Edits,
    /// Changes of the response.
    pub response: Edits,
    target: NewTarget,
    host: Option<Template>,
    groups: Groups,
}

/// An answer of the proxy itself.
#[derive(Debug)]
pub enum Own {
    /// A status, and the name of an answer.
    Respond(u16, Option<Box<str>>),
    /// Another address.
    Redirect(Redirect),
}

/// Changes of header fields and what their values are made of.
#[derive(Debug, Default)]
pub struct Edits {
    /// The changes.
    pub changes: Vec<FieldChange>,
    /// The value of each.
    values: Vec<Template>,
}

/// Where a client is sent.
#[derive(Debug)]
pub struct Redirect {
    /// The status.
    pub status: u16,
    scheme: Option<Scheme>,
    host: Option<Template>,
    port: u16,
    target: NewTarget,
}

/// What becomes of path and query.
#[derive(Debug, Default)]
enum NewTarget {
    #[default]
    Kept,
    Path(Template),
    /// The second takes the place of the first.
    Prefix(Box<[u8]>, Box<[u8]>),
}

/// What a client asked for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The host as it was sent, without port; empty where there is none.
    pub host: &'a [u8],
    /// The port as it was sent.
    pub port: Option<u16>,
    /// The path.
    pub path: &'a [u8],
    /// The query with its question mark, or nothing.
    pub query: &'a [u8],
}

impl Actions {
    /// What a route does beside choosing a cluster; none if that is all.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says how.
    pub fn new(route: &Route) -> Result<Option<Rc<Self>>, (&'static str, String)> {
        let action = route
            .action()
            .ok_or_else(|| ("cluster", "a route has one of cluster, respond and redirect_to".to_owned()))?;
        let plain = route.redirect.is_none()
            && route.rewrite.is_none()
            && route.edits.is_empty()
            && route.auth.is_none();
        if plain && matches!(action, Action::Forward(_)) {
            return Ok(None);
        }
        let groups = groups(route)?;
        let answer = match action {
            Action::Forward(_) => None,
            Action::Respond(respond) => {
                Some(Own::Respond(respond.status, respond.answer.as_deref().map(Box::from)))
            }
            Action::RedirectTo(to) => {
                let at = |error| ("redirect_to", error);
                let host = template(to.host.as_deref(), IN_TARGET, &groups).map_err(at)?;
                let target = NewTarget::new(route, &to.path, &to.prefix, &groups).map_err(at)?;
                if !REDIRECT_STATUSES.contains(&to.status) {
                    return Err(at(format!(
                        "the status {} is none of 301, 302, 303, 307 and 308",
                        to.status
                    )));
                }
                if (to.scheme, &to.host, to.port, &to.path, &to.prefix) == (None, &None, 0, &None, &None) {
                    return Err(at("nothing is given, so the client would come back".to_owned()));
                }
                Some(Own::Redirect(Redirect {
                    status: to.status,
                    scheme: to.scheme,
                    host,
                    port: to.port,
                    target,
                }))
            }
        };
        let (mut target, mut host) = (NewTarget::Kept, None);
        if let Some(rewrite) = &route.rewrite {
            let at = |error| ("rewrite", error);
            host = template(rewrite.host.as_deref(), IN_TARGET, &groups).map_err(at)?;
            target = NewTarget::new(route, &rewrite.path, &rewrite.prefix, &groups).map_err(at)?;
        }
        let auth = route.auth.as_ref().map(Auth::new).transpose().map_err(|error| ("auth", error))?;
        let request =
            Edits::new(route, EditOn::Request, IN_REQUEST, &groups).map_err(|error| ("edit", error))?;
        let response = Edits::new(route, EditOn::Response, IN_RESPONSE, &Groups::default())
            .map_err(|error| ("edit", error))?;
        Ok(Some(Rc::new(Self {
            answer,
            auth,
            redirect: route.redirect,
            request,
            response,
            target,
            host,
            groups,
        })))
    }

    /// Whether the request is changed on its way.
    pub fn change_request(&self) -> bool {
        self.host.is_some() || !matches!(self.target, NewTarget::Kept) || !self.request.changes.is_empty()
    }

    /// Makes the texts that a request is changed with: target, host, then the values of fields. What is not changed has no
    /// text: `Rewritten` says where each is.
    ///
    /// # Errors
    /// When what has come of it cannot stand in a request.
    pub fn rewrite(
        &self,
        asked: &Target<'_>,
        values: &Values<'_>,
        texts: &mut Texts,
    ) -> Result<Rewritten, Invalid> {
        let mut lower = [0; super::HOST_SIZE_MAX];
        let asked_in = (asked.path, lowered(asked.host, &mut lower));
        let mut rewritten = Rewritten::default();
        if !matches!(self.target, NewTarget::Kept) {
            rewritten.target = Some(texts.count());
            texts.add(|out| self.target.write(asked, values, &self.groups, asked_in, out));
            if !is_origin_form(texts.of(texts.count() - 1)) {
                return Err(Invalid);
            }
        }
        if let Some(host) = &self.host {
            rewritten.host = Some(texts.count());
            texts.add(|out| host.expand(values, &self.groups, asked_in, out));
            if parse_authority(texts.of(texts.count() - 1)).is_err() {
                return Err(Invalid);
            }
        }
        rewritten.first = texts.count();
        self.request.write(values, &self.groups, asked_in, texts)?;
        Ok(rewritten)
    }

    /// Makes the texts that a response is changed with.
    ///
    /// # Errors
    /// When what has come of it cannot stand in a response.
    pub fn edit_response(&self, values: &Values<'_>, texts: &mut Texts) -> Result<(), Invalid> {
        self.response.write(values, &self.groups, (b"", b""), texts)
    }

    /// Writes the value of Location. It is always a whole URL where the host is known, so that no path can be taken for a
    /// host.
    ///
    /// # Errors
    /// When what has come of it is no URL.
    pub fn location(
        &self,
        redirect: &Redirect,
        asked: &Target<'_>,
        values: &Values<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Invalid> {
        let mut lower = [0; super::HOST_SIZE_MAX];
        let asked_in = (asked.path, lowered(asked.host, &mut lower));
        let scheme = redirect.scheme.unwrap_or(Scheme::Http);
        let start = out.len();
        out.extend_from_slice(scheme.name().as_bytes());
        out.extend_from_slice(b"://");
        let authority = out.len();
        match &redirect.host {
            Some(host) => host.expand(values, &self.groups, asked_in, out),
            None => out.extend_from_slice(asked.host),
        }
        let known = out.len() > authority;
        let port = match (redirect.port, redirect.scheme, &redirect.host) {
            (0, None, None) => asked.port,
            (0, ..) => None,
            (port, ..) => Some(port),
        };
        let default = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        if let Some(port) = port.filter(|port| *port != default) {
            out.extend_from_slice(port_text(&mut [0; 6], port));
        }
        if known && parse_authority(&out[authority..]).is_err() {
            return Err(Invalid);
        }
        if !known {
            out.truncate(start);
        }
        let path = out.len();
        redirect.target.write(asked, values, &self.groups, asked_in, out);
        if !is_origin_form(&out[path..]) {
            return Err(Invalid);
        }
        // RFC 3986 section 4.2: "//" at the start of a reference begins a host.
        while !known && out[path..].starts_with(b"//") {
            out.remove(path);
        }
        Ok(())
    }
}

/// What was expanded cannot stand where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Which texts are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The new target.
    pub target: Option<usize>,
    /// The new host.
    pub host: Option<usize>,
    /// The value of the first change of a field.
    pub first: usize,
}

impl Edits {
    fn new(route: &Route, on: EditOn, allowed: &[Variable], groups: &Groups) -> Result<Self, String> {
        if route.edits.len() > EDITS_MAX {
            return Err(format!("more than {EDITS_MAX} changes of header fields"));
        }
        let mut edits = Self::default();
        for edit in route.edits.iter().filter(|edit| edit.on == on) {
            let at = |error: String| format!("{}: {error}", edit.name);
            let value = Template::new(&edit.value, allowed, groups).map_err(at)?;
            if edit.action == EditAction::Remove && !edit.value.is_empty() {
                return Err(at("a field that is removed has no value".to_owned()));
            }
            if !is_field_value(edit.value.as_bytes()) {
                return Err(at("the value holds a control character".to_owned()));
            }
            edits.changes.push(FieldChange::new(&edit.name, edit.action)?);
            edits.values.push(value);
        }
        Ok(edits)
    }

    fn write(
        &self,
        values: &Values<'_>,
        groups: &Groups,
        asked: (&[u8], &[u8]),
        texts: &mut Texts,
    ) -> Result<(), Invalid> {
        for value in &self.values {
            texts.add(|out| value.expand(values, groups, asked, out));
            if !is_field_value(texts.of(texts.count() - 1)) {
                return Err(Invalid);
            }
        }
        Ok(())
    }
}

impl NewTarget {
    fn new(
        route: &Route,
        path: &Option<String>,
        prefix: &Option<String>,
        groups: &Groups,
    ) -> Result<Self, String> {
        match (path, prefix) {
            (None, None) => Ok(Self::Kept),
            (Some(_), Some(_)) => Err("path and prefix exclude each other".to_owned()),
            (Some(text), None) => {
                let template = Template::new(text, IN_TARGET, groups)?;
                // What a group or variable begins with is the client's choice.
                match template.beginning().first() {
                    Some(b'/') => Ok(Self::Path(template)),
                    _ => Err("the path does not begin with /".to_owned()),
                }
            }
            (None, Some(new)) => match &route.path {
                PathMatch::Prefix(_) if !is_origin_form(new.as_bytes()) || new.contains('?') => {
                    Err("the prefix is not a path that begins with /".to_owned())
                }
                PathMatch::Prefix(old) => Ok(Self::Prefix(old.as_bytes().into(), new.as_bytes().into())),
                _ => Err("there is no path_prefix whose place the prefix could take".to_owned()),
            },
        }
    }

    fn write(
        &self,
        asked: &Target<'_>,
        values: &Values<'_>,
        groups: &Groups,
        asked_in: (&[u8], &[u8]),
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        match self {
            Self::Kept => out.extend_from_slice(asked.path),
            Self::Path(template) => template.expand(values, groups, asked_in, out),
            Self::Prefix(old, new) => {
                out.extend_from_slice(new);
                let rest = asked.path.strip_prefix(&**old).unwrap_or(asked.path);
                // One slash where they meet.
                match (out.ends_with(b"/"), rest.first()) {
                    (true, Some(b'/')) => out.extend_from_slice(&rest[1..]),
                    (false, Some(first)) if *first != b'/' => {
                        out.push(b'/');
                        out.extend_from_slice(rest);
                    }
                    _ => out.extend_from_slice(rest),
                }
            }
        }
        if !out[start..].contains(&b'?') {
            out.extend_from_slice(asked.query);
        }
    }
}

fn template(text: Option<&str>, allowed: &[Variable], groups: &Groups) -> Result<Option<Template>, String> {
    text.map(|text| Template::new(text, allowed, groups)).transpose()
}

fn groups(route: &Route) -> Result<Groups, (&'static str, String)> {
    let path = match &route.path {
        PathMatch::Regex(text) => Some(compile(text).map_err(|error| ("path_regex", error))?),
        PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
    };
    let host = route.host_regex.as_deref().map(compile).transpose().map_err(|error| ("host_regex", error))?;
    Ok(Groups::new(path, host))
}

/// The name that the table looked up: in lower case, without the root's dot.
fn lowered<'b>(host: &[u8], buffer: &'b mut [u8; super::HOST_SIZE_MAX]) -> &'b [u8] {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let length = host.len().min(buffer.len());
    buffer[..length].copy_from_slice(&host[..length]);
    buffer[..length].make_ascii_lowercase();
    &buffer[..length]
}

/// `:port`
fn port_text(buffer: &mut [u8; 6], mut port: u16) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        #[allow(clippy::cast_possible_truncation, reason = "a digit")]
        let digit = (port % 10) as u8;
        buffer[at] = b'0' + digit;
        port /= 10;
        if port == 0 {
            break;
        }
    }
    at -= 1;
    buffer[at] = b':';
    &buffer[at..]
}
