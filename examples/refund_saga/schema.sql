create table refunds (
    id           int primary key,
    order_id     int  not null,
    amount_cents int  not null,
    reason       text not null,
    status       text not null default 'wanted'
);
