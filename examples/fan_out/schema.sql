create table products (
    sku         text primary key,
    name        text not null,
    description text not null,
    in_stock    int  not null
);
create table purchases (
    id           int primary key,
    customer     text not null,
    sku          text not null references products,
    quantity     int  not null,
    amount_cents int  not null
);
-- Each purchase takes from the stock once: the key of the event says which have done so.
create table stock_moves (
    idempotency_key text primary key,
    sku             text not null references products,
    quantity        int  not null
);
insert into products values
    ('kettle', 'Kettle', 'Boils a litre of water in three minutes.', 10),
    ('lens', 'Camera lens', 'A fast 85 mm portrait lens.', 3);
