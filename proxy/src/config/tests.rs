mod errors;
mod round_trip;
mod rules;
mod table;
mod text;
