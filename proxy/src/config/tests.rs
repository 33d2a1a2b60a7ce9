mod access_log;
mod errors;
mod round_trip;
mod routes;
mod rules;
mod table;
mod text;
