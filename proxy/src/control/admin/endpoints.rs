//! The table of endpoints: each path and method once, for the router and for the OpenAPI document.

use std::sync::OnceLock;

use axum::routing::{MethodRouter, get, post, put};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use underpass_command::api::{
    BackendEntry, ChangeRequest, Changed, Draining, ErrorBody, Event, PAGE_SIZE_MAX, Page, RedirectChange,
    RedirectStatus, Saved, Sessions, StateDocument, Status, SteeringChange, SteeringStatus, Top, WorkerDrain,
    WorkerDraining, WorkerStatus,
};
use underpass_command::state::{self, Cluster, Listener, Route};

use super::routes::Context;
use super::{changes, routes};

/// One method of one path.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    method: &'static str,
    /// What it does, in one line.
    summary: &'static str,
    parameters: &'static [Parameter],
    /// What is sent.
    body: Option<SchemaOf>,
    body_required: bool,
    answer: Answer,
    pub(super) handler: fn() -> MethodRouter<Context>,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What is answered when all is well.
enum Answer {
    Json(SchemaOf),
    /// Blocks of server-sent events, each with a document of this kind.
    Events(SchemaOf),
    /// A document that no schema describes.
    Other(&'static str),
}

#[derive(Clone, Copy)]
enum Parameter {
    Name,
    Limit,
    After,
    Cluster,
    DryRun,
    IfMatch,
    IfNoneMatch,
    LastEventId,
    ClusterInPath,
    WorkerInPath,
}

const LIST: &[Parameter] = &[Parameter::Name, Parameter::Cluster, Parameter::Limit, Parameter::After];

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A path that is only read.
const fn read(
    path: &'static str,
    summary: &'static str,
    answer: Answer,
    handler: fn() -> MethodRouter<Context>,
) -> Endpoint {
    Endpoint {
        path,
        method: "get",
        summary,
        parameters: &[],
        body: None,
        body_required: true,
        answer,
        handler,
    }
}

/// Every endpoint. A path may be there several times, each time with another method.
pub(super) static ENDPOINTS: &[Endpoint] = &[
    read("/v1/status", "What the proxy does", Answer::Json(schema::<Status>), || get(routes::status)),
    Endpoint {
        parameters: &[Parameter::IfNoneMatch],
        ..read("/v1/state", "The configuration", Answer::Json(schema::<StateDocument>), || {
            get(changes::state)
        })
    },
    Endpoint {
        method: "post",
        parameters: &[Parameter::DryRun, Parameter::IfMatch],
        body: Some(schema::<ChangeRequest>),
        ..read(
            "/v1/changes",
            "Changes the configuration; answers when every worker has changed",
            Answer::Json(schema::<Changed>),
            || post(changes::change),
        )
    },
    Endpoint {
        parameters: LIST,
        ..read("/v1/listeners", "Listeners", Answer::Json(schema::<Page<Listener>>), || {
            get(routes::listeners)
        })
    },
    Endpoint {
        parameters: LIST,
        ..read("/v1/clusters", "Clusters", Answer::Json(schema::<Page<Cluster>>), || get(routes::clusters))
    },
    Endpoint {
        parameters: &[Parameter::ClusterInPath],
        ..read("/v1/clusters/{name}", "One cluster", Answer::Json(schema::<Cluster>), || get(routes::cluster))
    },
    Endpoint {
        parameters: LIST,
        ..read(
            "/v1/backends",
            "Backends of all clusters, their health, and what is under way on them",
            Answer::Json(schema::<Page<BackendEntry>>),
            || get(routes::backends),
        )
    },
    Endpoint {
        parameters: LIST,
        ..read("/v1/routes", "Routes", Answer::Json(schema::<Page<Route>>), || get(routes::routes))
    },
    Endpoint {
        parameters: LIST,
        ..read("/v1/answers", "Named answers", Answer::Json(schema::<Page<state::Answer>>), || {
            get(routes::answers)
        })
    },
    read("/v1/workers", "Worker processes", Answer::Json(schema::<Vec<WorkerStatus>>), || {
        get(routes::workers)
    }),
    Endpoint {
        method: "post",
        parameters: &[Parameter::WorkerInPath],
        body: Some(schema::<WorkerDrain>),
        body_required: false,
        ..read(
            "/v1/workers/{worker}/drain",
            "Lets a worker's process finish what it has, while another takes its place; answers when that accepts connections",
            Answer::Json(schema::<WorkerDraining>),
            || post(routes::drain_worker),
        )
    },
    read("/v1/redirect", "How bodies are forwarded", Answer::Json(schema::<RedirectStatus>), || {
        get(routes::redirect)
    }),
    Endpoint {
        method: "put",
        body: Some(schema::<RedirectChange>),
        ..read(
            "/v1/redirect",
            "Changes how bodies are forwarded",
            Answer::Json(schema::<RedirectStatus>),
            || put(routes::set_redirect),
        )
    },
    read("/v1/steering", "How connections find their worker", Answer::Json(schema::<SteeringStatus>), || {
        get(routes::steering)
    }),
    Endpoint {
        method: "put",
        body: Some(schema::<SteeringChange>),
        ..read(
            "/v1/steering",
            "Changes how connections find their worker",
            Answer::Json(schema::<SteeringStatus>),
            || put(routes::set_steering),
        )
    },
    Endpoint {
        parameters: &[Parameter::LastEventId],
        ..read("/v1/events", "What happens, as it happens", Answer::Events(schema::<Event>), || {
            get(routes::events)
        })
    },
    Endpoint {
        method: "post",
        ..read("/v1/save", "Saves the configuration", Answer::Json(schema::<Saved>), || post(changes::save))
    },
    Endpoint {
        method: "post",
        parameters: &[Parameter::DryRun],
        ..read(
            "/v1/reload",
            "Makes the configuration that of its file",
            Answer::Json(schema::<Changed>),
            || post(changes::reload),
        )
    },
    Endpoint {
        method: "post",
        ..read(
            "/v1/drain",
            "Finishes what is under way, takes nothing new, and ends",
            Answer::Json(schema::<Draining>),
            || post(routes::drain),
        )
    },
    read("/v1/metrics", "What there is to measure, for Prometheus", Answer::Other("text/plain"), || {
        get(routes::metrics)
    }),
    Endpoint {
        parameters: &[Parameter::Limit],
        ..read(
            "/v1/top",
            "Counts of every worker and of the busiest clusters and backends",
            Answer::Json(schema::<Top>),
            || get(routes::top),
        )
    },
    Endpoint {
        parameters: &[Parameter::Cluster, Parameter::Limit],
        ..read(
            "/v1/sessions",
            "Client connections that are open, those first whose request has been under way for longest",
            Answer::Json(schema::<Sessions>),
            || get(routes::sessions),
        )
    },
    read("/v1/openapi.json", "This document", Answer::Other("application/json"), || get(routes::openapi)),
];

/// The OpenAPI document, made once.
pub(super) fn document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| make().to_string())
}

/// OpenAPI 3.1, whose schemas are JSON Schema 2020-12.
fn make() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    let failure = schema::<ErrorBody>(&mut generator);
    for endpoint in ENDPOINTS {
        let operation = operation(endpoint, &failure, &mut generator);
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "underpass",
            "description": "Admin API of a running proxy, over its Unix socket.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(endpoint: &Endpoint, failure: &Schema, generator: &mut SchemaGenerator) -> Value {
    let content = match &endpoint.answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        // OpenAPI 3.1 has no word for streams: each block's data is this document.
        Answer::Events(schema) => {
            json!({ "text/event-stream": { "schema": { "type": "string", "x-event": schema(generator) } } })
        }
        Answer::Other(kind) => json!({ (*kind): {} }),
    };
    let mut responses = Map::new();
    responses.insert("200".into(), json!({ "description": endpoint.summary, "content": content }));
    if endpoint.parameters.iter().any(|parameter| matches!(parameter, Parameter::IfNoneMatch)) {
        responses.insert("304".into(), json!({ "description": "It still has this revision" }));
    }
    responses.insert(
        "default".into(),
        json!({
            "description": "It was refused or has failed; the document says why and what to do",
            "content": { "application/json": { "schema": failure } },
        }),
    );
    let name = endpoint.path.trim_start_matches("/v1/").replace(['/', '{', '}', '.'], "_");
    let mut operation = json!({
        "operationId": format!("{}_{name}", endpoint.method),
        "summary": endpoint.summary,
        "parameters": endpoint.parameters.iter().map(|parameter| describe(*parameter)).collect::<Vec<_>>(),
        "responses": responses,
    });
    if let Some(body) = endpoint.body {
        let content = json!({ "application/json": { "schema": body(generator) } });
        operation["requestBody"] = json!({ "required": endpoint.body_required, "content": content });
    }
    operation
}

fn describe(parameter: Parameter) -> Value {
    let text = json!({ "type": "string" });
    let (name, place, schema, description) = match parameter {
        Parameter::Name => ("name", "query", text, "Only items whose name contains this"),
        Parameter::Cluster => ("cluster", "query", text, "Only what belongs or leads to this cluster"),
        Parameter::After => ("after", "query", text, "The field next of the page before"),
        Parameter::Limit => {
            let schema = json!({ "type": "integer", "minimum": 1, "maximum": PAGE_SIZE_MAX });
            ("limit", "query", schema, "At most so many")
        }
        Parameter::DryRun => {
            ("dry_run", "query", json!({ "type": "boolean" }), "Only tell what it would come to")
        }
        Parameter::IfMatch => {
            ("If-Match", "header", text, "Only if the configuration has this revision; otherwise 412")
        }
        Parameter::IfNoneMatch => {
            ("If-None-Match", "header", text, "Only if the configuration has another revision; otherwise 304")
        }
        Parameter::LastEventId => {
            let schema = json!({ "type": "integer", "minimum": 0 });
            ("Last-Event-ID", "header", schema, "Begin with what has happened after this event")
        }
        Parameter::ClusterInPath => ("name", "path", text, "Name of the cluster"),
        Parameter::WorkerInPath => {
            let schema = json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX });
            ("worker", "path", schema, "Number of the worker")
        }
    };
    let required = place == "path";
    json!({ "name": name, "in": place, "required": required, "schema": schema, "description": description })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_endpoint() {
        let document = make();
        let count: usize = document["paths"]
            .as_object()
            .expect("paths")
            .values()
            .map(|path| path.as_object().map_or(0, Map::len))
            .sum();
        assert_eq!(count, ENDPOINTS.len(), "an endpoint is there twice");
        for endpoint in ENDPOINTS {
            let operation = &document["paths"][endpoint.path][endpoint.method];
            assert!(operation["responses"]["200"].is_object(), "{}", endpoint.path);
            assert_eq!(operation["requestBody"].is_object(), endpoint.body.is_some(), "{}", endpoint.path);
        }
    }

    /// Everything that a document refers to is there, and what is there is referred to by its own path.
    #[test]
    fn every_reference_leads_to_a_schema() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = make();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn what_is_sent_is_described_as_strictly_as_it_is_read() {
        let document = make();
        let change = &document["components"]["schemas"]["RedirectChange"];
        assert_eq!(change["additionalProperties"], false, "{change}");
        assert!(
            change["properties"]["mode"].is_object() && change["properties"]["scope"].is_object(),
            "{change}"
        );
    }
}
