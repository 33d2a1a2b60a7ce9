//! What a route does beside choosing a cluster: asks who the client is, answers in its place, rewrites.

use super::core::{Cluster, Core};
use super::event_loop::Worker;
use super::session::{Session, Step};
use crate::http1::{
    Changes, Fields, Known, Reason, RequestHead, Texts, authority_asked_for, parse_authority,
};
use crate::route::{Actions, Own, Target, Values};

impl Worker {
    /// Does what the route wants done before a backend is chosen; none to go on.
    pub(super) fn act(&mut self, key: usize) -> Option<Step> {
        let Self { core, sessions, .. } = self;
        let session = &sessions[key];
        let actions = session.exchange.actions.clone()?;
        let buffer = session.client.buffer.as_ref()?;
        let bytes = core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        if let Some(auth) = &actions.auth
            && !auth.admits(core.fields.values(bytes, Known::Authorization))
        {
            core.own.add_field("WWW-Authenticate", auth.challenge());
            return Some(self.answer_chosen(key, Some(Reason::AuthRequired), 401, None));
        }
        match actions.answer.as_ref()? {
            Own::Respond(status, name) => {
                let reason = (*status >= 400).then_some(Reason::RouteRefused);
                Some(self.answer_chosen(key, reason, *status, name.as_deref()))
            }
            Own::Redirect(redirect) => {
                let head = &session.exchange.head;
                let asked = target(head, bytes, &core.fields);
                let listener = core.listeners[usize::from(session.listener)].configured.name.as_bytes();
                let values = request_values(session, head, bytes, &asked, [listener, b"", b""]);
                let room = core.buffers.size();
                let written = core
                    .own
                    .add_field_with("Location", room, |out| actions.location(redirect, &asked, &values, out));
                Some(match written {
                    Ok(()) => self.answer_chosen(key, None, redirect.status, None),
                    Err(_) => self.refuse(key, Reason::RewriteInvalid),
                })
            }
        }
    }
}

impl Core {
    /// Makes the texts that a session's request is changed with, into `self.texts`.
    ///
    /// # Errors
    /// Why the request cannot be passed on.
    pub(super) fn rewrite(
        &mut self,
        session: &Session,
        upstream: usize,
    ) -> Result<Option<Rewriting>, Reason> {
        let Some(actions) = session.exchange.actions.as_deref().filter(|actions| actions.change_request())
        else {
            return Ok(None);
        };
        let Some(buffer) = session.client.buffer.as_ref() else { return Ok(None) };
        let bytes = self.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        let head = &session.exchange.head;
        let asked = target(head, bytes, &self.fields);
        let listener = self.listeners[usize::from(session.listener)].configured.name.as_bytes();
        let cluster = cluster_name(&self.clusters, session);
        let names = [listener, cluster, &self.upstreams[upstream].text];
        let values = request_values(session, head, bytes, &asked, names);
        self.texts.clear();
        let rewritten = actions.rewrite(&asked, &values, &mut self.texts);
        let rewritten = rewritten.map_err(|_| Reason::RewriteInvalid)?;
        // The scratch area of an edit is sized for so much.
        if self.texts.size() > self.head_limits.head_size_max as usize {
            return Err(Reason::HeadTooLarge);
        }
        let too_long =
            |target: usize| self.texts.of(target).len() > self.head_limits.target_size_max as usize;
        if rewritten.target.is_some_and(too_long) {
            return Err(Reason::TargetTooLong);
        }
        Ok(Some(rewritten))
    }

    /// Makes the texts that a session's response is changed with, into `self.texts`; false where nothing is changed, as in
    /// interim responses.
    ///
    /// # Errors
    /// Why the response cannot be passed on.
    pub(super) fn edit_response(&mut self, session: &Session, last: bool) -> Result<bool, Reason> {
        let exchange = &session.exchange;
        let edited = |actions: &&Actions| last && !actions.response.changes.is_empty();
        let Some(actions) = exchange.actions.as_deref().filter(edited) else { return Ok(false) };
        let backend = exchange.upstream.map_or(&b""[..], |upstream| &self.upstreams[upstream as usize].text);
        let values = Values {
            client: session.address.as_bytes(),
            request_id: exchange.id.as_bytes(),
            listener: self.listeners[usize::from(session.listener)].configured.name.as_bytes(),
            cluster: cluster_name(&self.clusters, session),
            backend,
            ..Values::default()
        };
        self.texts.clear();
        actions.edit_response(&values, &mut self.texts).map_err(|_| Reason::RewriteInvalid)?;
        match self.texts.size() > self.head_limits.head_size_max as usize {
            true => Err(Reason::HeadTooLarge),
            false => Ok(true),
        }
    }
}

/// Which texts are what in a rewritten request.
pub(super) type Rewriting = crate::route::Rewritten;

/// The changes of a request whose texts [`Core::rewrite`] made.
pub(super) fn request_changes<'a>(
    actions: Option<&'a Actions>,
    rewriting: Option<Rewriting>,
    texts: &'a Texts,
) -> Changes<'a> {
    match (actions, rewriting) {
        (Some(actions), Some(rewriting)) => Changes {
            target: rewriting.target.map(|index| texts.of(index)),
            host: rewriting.host.map(|index| texts.of(index)),
            fields: &actions.request.changes,
            values: texts,
            first: rewriting.first,
        },
        _ => Changes::NONE,
    }
}

/// The changes of a response whose texts [`Core::edit_response`] made.
pub(super) fn response_changes<'a>(
    actions: Option<&'a Actions>,
    edited: bool,
    texts: &'a Texts,
) -> Changes<'a> {
    match actions.filter(|_| edited) {
        Some(actions) => Changes { fields: &actions.response.changes, values: texts, ..Changes::NONE },
        None => Changes::NONE,
    }
}

fn cluster_name<'a>(clusters: &'a [Cluster], session: &Session) -> &'a [u8] {
    let number = session.exchange.cluster;
    number.map_or(b"", |number| clusters[number as usize].configured.name.as_bytes())
}

fn target<'a>(head: &RequestHead, bytes: &'a [u8], fields: &'a Fields) -> Target<'a> {
    let port = parse_authority(authority_asked_for(bytes, head, fields)).ok().and_then(|asked| asked.port);
    let (path, query) = head.path_and_query(bytes);
    Target { host: head.host.of(bytes), port, path, query }
}

/// `names` are those of the listener, the cluster and the backend.
fn request_values<'a>(
    session: &'a Session,
    head: &RequestHead,
    bytes: &'a [u8],
    asked: &Target<'a>,
    [listener, cluster, backend]: [&'a [u8]; 3],
) -> Values<'a> {
    Values {
        client: session.address.as_bytes(),
        request_id: session.exchange.id.as_bytes(),
        host: asked.host,
        path: asked.path,
        query: asked.query.strip_prefix(b"?").unwrap_or_default(),
        method: head.method_span.of(bytes),
        listener,
        cluster,
        backend,
        ..Values::default()
    }
}
