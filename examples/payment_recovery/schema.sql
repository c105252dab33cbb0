create table customers (
    id    int primary key,
    name  text not null,
    email text not null
);
create table payments (
    id           int primary key,
    customer_id  int not null references customers,
    amount_cents int not null,
    method       text not null,
    status       text not null default 'new'
);
-- What people who spoke with customers wrote down. Indexed, to be searched by meaning.
create table customer_notes (
    id          int primary key,
    customer_id int not null references customers,
    body        text not null
);
insert into customers values (1, 'Ada', 'ada@example.com'), (2, 'Grace', 'grace@example.com');
insert into customer_notes values (1, 2, 'Grace always pays her invoices by bank transfer.');
